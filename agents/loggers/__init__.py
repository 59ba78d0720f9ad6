"""Loggers of runs, by name: JSON lines always, a live table, and trackers."""
