"""Several processes: rank, collectives, and each process's rows of a batch."""
