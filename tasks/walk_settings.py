"""Settings of agents that work on random walks: what ``Task.settings`` gives for the task "random-walks".

The same on every graph, chosen on graph seed 1000: rate, decay and KL penalty of the online agents with PPO
on agent seeds 10 to 13, ILQL's on 0 and 1; for others a few were tried on seeds 10 and 11, for most one.
PPO's clip, gradient norm and KL penalty were chosen on graph seeds 1 and 1000, agent seeds 10 and up; the
length of the pretraining on graph seed 1, agent seed 10.
"""

from __future__ import annotations

from typing import Any

PRETRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 100,
    "steps": 200,
    "lr_schedule": "cosine",
    "completion_only": False,
}
"""Next-token pretraining on the 1,000 walks, from random weights: settings of ``sft``."""
_ONLINE: dict[str, Any] = {
    "learning_rate": 2e-4,
    "lr_schedule": "linear",
    "iterations": 20,
    "episodes_per_iteration": 140,
    # A start that no episode solves any more is hardly found again; a small KL penalty keeps all open.
    "kl_coef": 0.02,
}
_PLAIN = {**_ONLINE, "epochs": 1, "minibatches": 7}
_CLIPPED = {**_ONLINE, "epochs": 4, "minibatches": 2, "clip_range": 0.2, "stop_at_kl": 0.02}
_GROUPED = {**_CLIPPED, "samples_per_prompt": 7}
_CRITIC: dict[str, Any] = {
    # What follows the goal earns nothing: a discount makes the end of the text better than more text.
    "gamma": 0.95,
    "value_coef": 1.2,
    "value_head": "mlp",
}
_PPO = {
    **_ONLINE,
    "epochs": 4,
    "minibatches": 2,
    "adam_betas": (0.9, 0.999),
    # Once nearly every walk is good, advantages are the critic's noise, not to be blown up to variance 1.
    "whiten_min_std": 0.3,
    **_CRITIC,
}
_LOGGED: dict[str, Any] = {"lr_schedule": "cosine", "batch_size": 100, "steps": 200}
# 50 pairs are 100 episodes.
_PAIRS: dict[str, Any] = {**_LOGGED, "batch_size": 50, "learning_rate": 1e-4}
_PRETRAINED: dict[str, dict[str, Any]] = {
    # Fewer starts were lost for a while, and none for good, with a short clip and with gradients not scaled
    # down: large early ones make Adam's later steps shorter.
    "ppo": {**_PPO, "clip_range": 0.1, "max_grad_norm": None, "kl_coef": 0.01},
    "nlpo": {**_PPO, "mask_top_p": 0.9, "mask_min_tokens": 2, "mask_update_iterations": 5},
    "sb3": {  # PPO's, as far as they apply; a rollout of as many tokens
        "learning_rate": 2e-4,
        "lr_schedule": "linear",
        "iterations": 20,
        "n_steps": 10,
        "epochs": 4,
        "minibatches": 2,
        "adam_betas": (0.9, 0.999),
        "gamma": 0.95,
        "clip_range": 0.1,
        "max_grad_norm": None,
        "kl_coef": 0.01,
    },
    "a2c": {**_PLAIN, **_CRITIC, "center_by_prompt": True},
    "reinforce": {**_PLAIN, "whiten_advantages": True},
    "rloo": {**_GROUPED, "whiten_advantages": True},
    "grpo": _GROUPED,
    "reinforce++": {**_CLIPPED, "whiten_min_std": 0.3},
    "rft": {
        "learning_rate": 1e-3,
        "episodes_per_iteration": 1000,
        "samples_per_prompt": 50,
        "iterations": 6,
        "improve_steps": 2,
        "epochs": 3,
        "minibatches": 4,
    },
    "online-dpo": {
        "learning_rate": 1e-4,
        "lr_schedule": "linear",
        "iterations": 20,
        "episodes_per_iteration": 140,
        "samples_per_prompt": 7,
        "epochs": 4,
        "minibatches": 1,
    },
    "archer": {
        "learning_rate": 2e-4,
        "critic_learning_rate": 1e-3,
        "lr_schedule": "linear",
        "iterations": 20,
        "episodes_per_iteration": 140,
        "critic_steps": 50,
        "critic_batch_size": 140,
        "critic_warmup": 2,
        "actor_turns": 560,
        "minibatches": 4,
    },
    "best-of-n": {"n": 16},
    # What these offline agents learn is a change of the pretrained model.
    "rwr": {**_LOGGED, "learning_rate": 3e-4, "temperature": 0.3},
    "dpo": {**_PAIRS, "learning_rate": 3e-5, "beta": 1.0},
    "kto": {**_PAIRS, "batch_size": 100},
    "orpo": {**_PAIRS, "learning_rate": 3e-4},
    "simpo": _PAIRS,
    "cpo": _PAIRS,
}
_FROM_RANDOM_WEIGHTS: dict[str, dict[str, Any]] = {
    "ilql": {
        **_LOGGED,
        "learning_rate": 2e-3,
        "warmup_steps": 20,
        "gamma": 0.99,
        "expectile": 0.9,
        "head": "mlp",
        "target_alpha": 0.1,
        "target_every": 5,
        "standardize_returns": True,
        "decode_beta": 100.0,
    },
    "monte-carlo": {
        **_LOGGED,
        "learning_rate": 2e-3,
        "warmup_steps": 20,
        "gamma": 0.99,
        "head": "mlp",
        "standardize_returns": True,
        "decode_beta": 4.0,
    },
    "sft": {**_LOGGED, "learning_rate": 1e-3},
    "filtered-bc": {**_LOGGED, "learning_rate": 1e-3, "percentile": 0.85},
    "reward-model": {**_LOGGED, "learning_rate": 1e-3},
}
_CANNOT = {
    "sft": "it clones all walks alike, good and bad ones, so it ends at their average, about 0.35 of 1",
    "reward-model": "it learns to score walks and writes none, so it has no return",
}

SETTINGS: dict[str, dict[str, Any]] = {
    **{agent: {"settings": own, "start": PRETRAINING, "num_envs": 128} for agent, own in _PRETRAINED.items()},
    **{agent: {"settings": own, "num_envs": 128} for agent, own in _FROM_RANDOM_WEIGHTS.items()},
}
"""Agent -> what ``Task.settings`` gives."""
for _agent, _reason in _CANNOT.items():
    SETTINGS[_agent]["cannot"] = _reason
