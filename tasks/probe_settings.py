"""Settings of agents that work on the probes, from random weights: what ``Task.settings`` gives for them.

PPO's were chosen; those of a2c, reinforce, reinforce++, rloo and grpo are PPO's, as far as they apply. Those
of offline agents, which learn from the episodes of a policy that draws every token equally often, were chosen
on agent seeds 10 and up.
"""

from __future__ import annotations

from typing import Any

_SHARED: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_schedule": "linear",
    "warmup_steps": 60,
    "iterations": 50,
    "episodes_per_iteration": 160,
    "kl_coef": 0.0,
    "entropy_coef": 0.01,
}
_CLIPPED = {**_SHARED, "epochs": 4, "minibatches": 1}
_PLAIN = {**_SHARED, "epochs": 1, "minibatches": 4}
_PAIRED: dict[str, Any] = {"learning_rate": 2e-3, "iterations": 50, "episodes_per_iteration": 160}
_CRITIC: dict[str, Any] = {
    "value_coef": 1.0,
    "value_head": "mlp",
    "value_clip_range": None,
    "center_by_prompt": True,
}
_LOGGED: dict[str, Any] = {"learning_rate": 1e-3, "steps": 400, "batch_size": 512}
_PAIRS: dict[str, Any] = {"learning_rate": 3e-3, "steps": 150, "batch_size": 64}
_ALL: dict[str, dict[str, Any]] = {
    "ppo": {**_CLIPPED, **_CRITIC},
    "a2c": {**_PLAIN, **_CRITIC},
    "reinforce": _PLAIN,
    "reinforce++": _CLIPPED,
    "rloo": _PLAIN,
    "grpo": _CLIPPED,
    "nlpo": {**_CLIPPED, **_CRITIC, "mask_top_p": 0.99, "mask_min_tokens": 2},
    "sb3": {"learning_rate": 5e-3, "iterations": 40, "n_steps": 16, "kl_coef": 0.0},
    "online-dpo": {**_PAIRED, "epochs": 2, "minibatches": 2},
    "rft": {**_PAIRED, "samples_per_prompt": 16, "generations_kept": 1, "minibatches": 4},
    "best-of-n": {"n": 64},
    "ilql": {
        **_LOGGED,
        "gamma": 1.0,
        "expectile": 0.9,
        "head": "mlp",
        "target_alpha": 0.1,
        "decode_beta": 100.0,
    },
    "monte-carlo": {**_LOGGED, "gamma": 1.0, "head": "mlp", "decode_beta": 100.0},
    "rwr": {**_LOGGED, "temperature": 0.1},
    "filtered-bc": {**_LOGGED, "batch_size": 64, "percentile": 0.9},
    "dpo": {**_PAIRS, "beta": 0.5},
    # One response in seven is desirable where one token in seven is right.
    "kto": {**_PAIRS, "beta": 0.5, "desirable_weight": 6.0},
    "orpo": {**_PAIRS, "beta": 1.0},
    "simpo": {**_PAIRS, "gamma": 2.0},
    "cpo": {**_PAIRS, "beta": 0.5},
    "sft": _LOGGED,
    "reward-model": _LOGGED,
}
# The longest prompts of the counting probe are found late: more and smaller steps, with some entropy left to
# find them.
_COUNT: dict[str, Any] = {
    "learning_rate": 1e-3,
    "warmup_steps": 20,
    "iterations": 130,
    "entropy_coef": 0.003,
}
_OF_COUNT: dict[str, dict[str, Any]] = {
    "ppo": {**_COUNT, "minibatches": 4, "center_by_prompt": False, "entropy_coef": 0.03},
    "a2c": {**_COUNT, "minibatches": 8},
    "reinforce": {**_COUNT, "minibatches": 8},
    "reinforce++": {**_COUNT, "minibatches": 4},
    "rloo": {**_COUNT, "minibatches": 8},
    "grpo": {**_COUNT, "minibatches": 4},
    "nlpo": {**_COUNT, "minibatches": 4, "center_by_prompt": False},
    "sb3": {"learning_rate": 1e-3, "iterations": 130, "entropy_coef": 0.003},
    "online-dpo": {"iterations": 130},
    "rft": {"iterations": 130},
}
_CANNOT = {
    "sft": "it clones the task's demonstrations, whose tokens are drawn at random, so it gets no better",
    "reward-model": "it learns to score texts and writes none, so it has no return",
}


def settings_of_probe(name: str) -> dict[str, dict[str, Any]]:
    """Agent -> what ``Task.settings`` gives for the probe ``name``."""
    found: dict[str, dict[str, Any]] = {}
    for agent, own in _ALL.items():
        changes = _OF_COUNT.get(agent, {}) if name == "probe-count" else {}
        found[agent] = {"settings": {**own, **changes}, "num_envs": 128}
        if agent in _CANNOT:
            found[agent]["cannot"] = _CANNOT[agent]
    return found
