"""One optimizer step: optimizers, micro-batches, backends for whole and sharded weights."""
