"""Settings of agents that play the games: what ``Task.settings`` gives for them."""

from __future__ import annotations

from typing import Any

GUESS_NUMBER: dict[str, dict[str, Any]] = {}
MAZE: dict[str, dict[str, Any]] = {}
WORDLE: dict[str, dict[str, Any]] = {}
TWENTY_QUESTIONS: dict[str, dict[str, Any]] = {}
