"""Reports of runs as one HTML page, without scripts or network; imported as ``textenv.agents.reports``."""
