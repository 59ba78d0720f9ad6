"""Metrics of texts, by name."""
