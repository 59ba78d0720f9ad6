"""Partners that come with tasks: games with a known optimum, and a simulated user."""
