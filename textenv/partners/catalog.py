"""The built-in partners by name: the module that registers each, and one line about it."""

BUILTIN: dict[str, tuple[str, str]] = {}
"""Name -> (module, description). A module is imported when its partner is first asked for."""
