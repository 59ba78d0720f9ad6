"""Reports of runs as one HTML page, without scripts or network, and cards of models on the hub."""
