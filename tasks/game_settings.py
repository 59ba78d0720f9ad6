"""Settings of agents that play the games: what ``Task.settings`` gives for them.

They were chosen on agent seeds 100 and up.
"""

from __future__ import annotations

from typing import Any

_LOGGED: dict[str, Any] = {"lr_schedule": "cosine", "warmup_steps": 20, "batch_size": 64}
_ILQL: dict[str, Any] = {
    **_LOGGED,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "expectile": 0.9,
    "head": "mlp",
    "target_alpha": 0.1,
    "target_every": 5,
    # Tokens that are in no episode get their Q from this term alone. Without it they look best.
    "cql_coef": 0.01,
    "decode_beta": 20.0,
}

GUESS_NUMBER: dict[str, dict[str, Any]] = {}
MAZE: dict[str, dict[str, Any]] = {
    "ilql": {"settings": {**_ILQL, "steps": 1200}, "num_envs": 128},
}
WORDLE: dict[str, dict[str, Any]] = {}
TWENTY_QUESTIONS: dict[str, dict[str, Any]] = {}
