"""Benchmarks of speed, memory and learning. Run one as ``python -m benchmarks.NAME``."""
