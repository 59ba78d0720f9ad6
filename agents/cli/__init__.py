"""The command ``textenv``: what it takes, what it does, what it prints."""
