"""Preparation of ``train``: arguments, the task's settings, environments, the initial policy."""
