"""Helpers without knowledge of the domain: argument checks, names, files, settings, terminal."""
