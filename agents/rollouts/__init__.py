"""Collectors: who generates the episodes of online agents."""
