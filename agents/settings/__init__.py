"""Settings of the agents, one class each. They need no torch, so --help and errors are quick."""
