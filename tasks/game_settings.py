"""Settings of agents that play the games: what ``Task.settings`` gives for them.

They were chosen on agent seeds >= 100.
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

_PPO: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_schedule": "linear",
    "epochs": 4,
    "minibatches": 4,
    "kl_coef": 0.0,
    # Returns of -30 are far from the first values.
    "value_clip_range": None,
    "value_head": "mlp",
}

GUESS_NUMBER: dict[str, dict[str, Any]] = {
    "ppo": {
        "settings": {
            **_PPO,
            "iterations": 100,
            "episodes_per_iteration": 512,
            "entropy_coef": 0.0,
            "gamma": 1.0,
            "gae_lambda": 0.5,
            "value_coef": 0.5,
        },
        "start": {
            "steps": 800,
            "batch_size": 128,
            "learning_rate": 3e-3,
            "lr_schedule": "cosine",
            "warmup_steps": 20,
        },
        "num_envs": 256,
    },
}
MAZE: dict[str, dict[str, Any]] = {
    "ilql": {"settings": {**_ILQL, "steps": 2000}, "num_envs": 128},
    "ppo": {
        "settings": {
            **_PPO,
            "iterations": 30,
            "episodes_per_iteration": 256,
            "entropy_coef": 0.01,
            "gamma": 0.99,
            "value_coef": 0.05,
        },
        "start": {"steps": 100, "batch_size": 64, "learning_rate": 2e-3},
        "num_envs": 128,
    },
}
WORDLE: dict[str, dict[str, Any]] = {}
TWENTY_QUESTIONS: dict[str, dict[str, Any]] = {}
