"""Reward models: their data, losses, training and evaluation."""
