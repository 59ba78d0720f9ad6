"""Several processes as one: primitives, shares of a batch, weights in parts, DeepSpeed's engine."""
