"""Forward passes through causal language models, and checks of models."""
