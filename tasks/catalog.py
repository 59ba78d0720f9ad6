"""The tasks that come with the library, one line each: `textenv tasks` loads none of them."""

from __future__ import annotations

MODULES = (
    "random_walks",
    "reviews",
    "prompts",
    "probes",
    "guess_number",
    "maze",
    "wordle",
    "twenty_questions",
    "calculator",
    "countdown",
)
"""Modules of this package that register them."""
BUILTIN: dict[str, str] = {
    "calculator": "Products of two numbers that a tool computes, if it is called; optimum 1, on a CPU.",
    "countdown": "Reach a number from three others with + - * /; the answer is checked; optimum 1.",
    "guess-number": "Find a number from 1 to 100 by asking whether it is higher or lower; optimum 0.52.",
    "maze": "Find the goal of a maze, seeing one's cell or only walls; optimum -6.84 or -7.24, 30 moves.",
    "probe-constant": "Always write one letter: the simplest bandit; an agent that fails it learns nothing.",
    "probe-copy": "Write the prompt's second letter: does the policy see its prompt, and get its own reward?",
    "probe-count": "Count from 1 to the prompt's number, then stop: credit over a sequence.",
    "probe-end": "Stop at once: EOS must be an action that is rewarded and trained like any other.",
    "probe-longest": "Never stop: the best episodes are truncated by the budget and must keep their reward.",
    "prompts": "Your own prompts: a file, data set, hub id or list; other columns are passed to the rewards.",
    "random-walks": "Shortest paths on a graph of 21 nodes written as letters; optimum 1, trains on a CPU.",
    "reviews": "Continue the first words of a film review positively; 10,605 snippets with human ratings.",
    "twenty-questions": "Find one of 64 persons by yes-no questions of -1, from a table; optimum -5.5.",
    "wordle": "Find a word of five letters in six guesses of -1, among 236 or 431; optimum -1.72 or -1.91.",
}
"""Name -> one line about the task."""
