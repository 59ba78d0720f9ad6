"""Adapters to agents of other libraries."""
