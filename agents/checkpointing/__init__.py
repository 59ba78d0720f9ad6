"""Runs on disk: run folders, checkpoints, resume."""
