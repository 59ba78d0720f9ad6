"""The environment: vectorized text generation, and the view of a single row."""
