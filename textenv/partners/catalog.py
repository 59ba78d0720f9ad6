"""The built-in partners by name: the module that registers each, and one line about it."""

BUILTIN: dict[str, tuple[str, str]] = {
    "transcript": ("textenv.partners.transcript", "Replies what was replied in recorded episodes."),
}
"""Name -> (module, description). A module is imported when its partner is first asked for."""
