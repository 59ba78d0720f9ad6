"""Policies: a causal LM that acts in text environments, its critics, its reference, its files."""
