"""Partners that come with tasks, such as games with a known optimum."""
