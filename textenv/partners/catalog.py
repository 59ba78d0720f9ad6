"""The built-in partners by name: the module that registers each, and one line about it."""

BUILTIN: dict[str, tuple[str, str]] = {
    "language-model": ("textenv.tasks.partners.language_model", "A simulated user, played by a causal LM."),
    "tools": (
        "textenv.partners.tools",
        "Runs the functions that the policy calls and replies their results.",
    ),
    "guess-number": ("textenv.tasks.partners.guess_number", "Says whether its number is higher or lower."),
    "maze": ("textenv.tasks.partners.maze", "Moves through a double T maze and says what is seen."),
    "textarena": ("textenv.tasks.partners.textarena", "Single-player games of the package TextArena."),
    "transcript": ("textenv.partners.transcript", "Replies what was replied in recorded episodes."),
    "twenty-questions": (
        "textenv.tasks.partners.twenty_questions",
        "Thinks of one of 64 persons and says what the person has.",
    ),
    "wordle": ("textenv.tasks.partners.wordle", "Marks the letters of a guessed word of five letters."),
}
"""Name -> (module, description). A module is imported when its partner is first asked for."""
BUILTIN_TOOLS = {"calculator": "textenv.partners.calculator"}
"""Name of a tool -> the module that registers it."""
