"""Speed and memory of textenv beside what people use today. Run one as ``python -m benchmarks.NAME``."""
