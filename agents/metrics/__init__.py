"""Metrics of generated texts, by name: diversity, likeness to references, perplexity."""
