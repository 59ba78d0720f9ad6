"""Forward passes through causal language models, and what models must be."""
