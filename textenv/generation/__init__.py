"""Decoding: the policy that acts, the KV cache, sampling."""
