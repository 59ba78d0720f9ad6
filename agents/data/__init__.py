"""What losses learn from: episodes, preferences and ratings as batches."""
