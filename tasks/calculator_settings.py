"""Settings of agents on the task "calculator": what ``Task.settings`` gives for them.

The start and GRPO's settings were chosen on agent seed 100; PPO's are GRPO's, as far as they apply.
"""

from __future__ import annotations

from typing import Any

START: dict[str, Any] = {
    "learning_rate": 4e-3,
    "lr_schedule": "cosine",
    "warmup_steps": 20,
    "batch_size": 128,
    "steps": 800,
}
"""Fine-tuning on the task's episodes, in a tenth of which the tool is called: settings of ``sft``."""
_ONLINE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "iterations": 40,
    "episodes_per_iteration": 512,
    "minibatches": 4,
    "kl_coef": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {
        "settings": {**_ONLINE, "samples_per_prompt": 8, "epochs": 2},
        "start": START,
        "num_envs": 128,
    },
    "ppo": {
        "settings": {**_ONLINE, "epochs": 4, "value_head": "mlp"},
        "start": START,
        "num_envs": 128,
    },
    "sft": {
        "settings": START,
        "num_envs": 128,
        "cannot": "it clones all players of the task's episodes alike, and most of them guess",
    },
}
"""Agent -> what ``Task.settings`` gives."""
