"""The runs of ``benchmarks.fingerprints``: every agent, and the settings that change what is computed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, LlamaConfig

from textenv.tasks import letter_tokenizer

TOKENIZER = letter_tokenizer("abcdefgh ")
PROMPTS = ["ab", "c", "dad", "bag e", "fed", "h a"]
ANSWERS = ["ab", "c", "dea", "face", "b", "gg", "ace", "h"]
IDS = {
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
    "vocab_size": len(TOKENIZER),
}
LORA = {"policy_kwargs": {"lora": {"r": 2, "lora_alpha": 4}}}


def gpt2() -> GPT2Config:
    """A GPT-2 of some thousand weights, whose predictions are far from uniform."""
    return GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, initializer_range=0.3, **IDS)


def llama() -> LlamaConfig:
    """A Llama of the same size, with grouped keys and an LM head of its own."""
    return LlamaConfig(
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        **IDS,
    )


def count_a(completions: list[str], **columns: Any) -> list[float]:
    """The reward: letters a, less a tenth of the length."""
    return [text.count("a") - 0.1 * len(text) for text in completions]


def online(agent: str, **changes: Any) -> dict[str, Any]:
    """Arguments of ``textenv.train`` for an agent that generates."""
    given = {
        "agent": agent,
        "model": gpt2(),
        "tokenizer": TOKENIZER,
        "prompts": PROMPTS,
        "eval_prompts": ["ab", "e"],
        "reward": count_a,
        "env_kwargs": {"max_new_tokens": 6},
        "num_envs": 5,
        "iterations": 3,
        "episodes_per_iteration": 12,
        "epochs": 2,
        "minibatches": 2,
        "learning_rate": 1e-2,
        "eval_episodes": 8,
    }
    return {**given, **changes}


def offline(agent: str, dataset: Any, **changes: Any) -> dict[str, Any]:
    """Arguments of ``textenv.train`` for an agent that learns from data."""
    given = {
        "agent": agent,
        "model": gpt2(),
        "tokenizer": TOKENIZER,
        "dataset": dataset,
        "steps": 4,
        "batch_size": 5,
        "learning_rate": 1e-2,
    }
    return {**given, **changes}


def rows() -> list[dict[str, Any]]:
    """Prompts, completions and rewards."""
    return [
        {"prompt": PROMPTS[i % len(PROMPTS)], "completion": text, "reward": count_a([text])[0]}
        for i, text in enumerate(ANSWERS * 2)
    ]


def pairs() -> list[dict[str, Any]]:
    """Prompts with a chosen and a rejected completion."""
    return [
        {"prompt": PROMPTS[i % len(PROMPTS)], "chosen": text, "rejected": text[::-1] + "h"}
        for i, text in enumerate(ANSWERS)
    ]


def labelled() -> list[dict[str, Any]]:
    """Prompts with a completion that is desirable or not, for KTO."""
    return [
        {"prompt": PROMPTS[i % len(PROMPTS)], "completion": text, "label": "a" in text}
        for i, text in enumerate(ANSWERS)
    ]


def ratings() -> list[dict[str, Any]]:
    """Rated texts."""
    return [{"text": text, "reward": float(text.count("a"))} for text in ANSWERS]


# With these an agent that learns from data is evaluated by playing.
PLAYED: dict[str, Any] = {"eval_prompts": ["ab", "e"], "env_kwargs": {"max_new_tokens": 6}, "num_envs": 4}
PLAYED |= {"eval_episodes": 8, "reward": count_a}
WHOLE = {"epochs": 1, "minibatches": 1}
GROUPS = {"samples_per_prompt": 4}

RUNS: dict[str, dict[str, Any]] = {
    "ppo": online("ppo"),
    "ppo-llama": online("ppo", model=llama()),
    "ppo-one-step": online("ppo", **WHOLE),
    "ppo-micro-batches": online("ppo", max_tokens_per_microbatch=24),
    "ppo-packing": online("ppo", packing=True),
    "ppo-lora": online("ppo", **LORA),
    "ppo-lora-packing": online("ppo", packing=True, **LORA),
    "ppo-separate": online("ppo", value_model="separate", value_head="mlp"),
    "ppo-top-layer": online("ppo", policy_kwargs={"train_layers": 1}),
    "ppo-temperature": online("ppo", policy_kwargs={"temperature": 0.7}),
    "ppo-checkpointing": online("ppo", policy_kwargs={"gradient_checkpointing": True}),
    "ppo-no-kl": online("ppo", kl_coef=0.0),
    "ppo-kl-loss": online("ppo", kl_placement="loss"),
    "ppo-kl-adaptive": online("ppo", kl_controller="adaptive", kl_target=0.2, kl_horizon=100),
    "ppo-kl-loss-adaptive": online("ppo", kl_placement="loss", kl_controller="adaptive", kl_target=0.2),
    "ppo-kl-reward-term": online("ppo", kl_coef=0.0, reward=[count_a, ["kl", {"coef": 0.1}]]),
    "ppo-rewards": online("ppo", reward=[["normalized", {"of": ["length", {"coef": -1.0}]}], count_a]),
    "ppo-ptx": online("ppo", ptx_coef=0.5, ptx_batch_size=4, dataset=rows()),
    "ppo-ptx-packing": online("ppo", ptx_coef=0.5, ptx_batch_size=4, dataset=rows(), packing=True),
    "ppo-ema": online("ppo", ema_decay=0.5),
    "ppo-entropy-dual-clip": online("ppo", entropy_coef=0.01, dual_clip=3.0, clip_range_high=0.3),
    "ppo-scores": online("ppo", score_scale=True, score_clip=2.0, scale_rewards=True),
    "ppo-centered": online("ppo", center_by_prompt=True, bootstrap_truncated=True, gamma=0.95),
    "ppo-stop-at-kl": online("ppo", stop_at_kl=0.001, epochs=3),
    "ppo-importance": online("ppo", importance_correction="token"),
    "ppo-sequence-ratio": online("ppo", ratio_level="sequence", clip_range=3e-4),
    "ppo-schedule": online("ppo", lr_schedule="cosine", warmup_steps=2, weight_decay=0.1, max_grad_norm=0.5),
    "ppo-bfloat16": online("ppo", autocast="bfloat16"),
    "ppo-16-bit-weights": online("ppo", policy_kwargs={"dtype": torch.bfloat16}),
    "ppo-task": {
        **{"agent": "ppo", "task": "random-walks", "start": {"steps": 3}, "num_envs": 8, "iterations": 2},
        **{"episodes_per_iteration": 16, "eval_episodes": 16},
    },
    "ilql-task": {"agent": "ilql", "task": "random-walks", "steps": 3, "eval_episodes": 16},
    "a2c": online("a2c", **WHOLE),
    "nlpo": online("nlpo", mask_top_p=0.9, mask_min_tokens=2, mask_update_iterations=1),
    "grpo": online("grpo", **GROUPS),
    "grpo-packing": online("grpo", packing=True, **GROUPS),
    "grpo-lora": online("grpo", **GROUPS, **LORA),
    "grpo-gspo": online("grpo", ratio_level="sequence", clip_range=3e-4, clip_range_high=4e-4, **GROUPS),
    "grpo-dapo": online("grpo", aggregation="dapo", max_rollouts=2, clip_range_high=0.28, **GROUPS),
    "grpo-dr": online("grpo", aggregation="dr_grpo", kl_coef=0.0, **GROUPS),
    "rloo": online("rloo", **WHOLE, **GROUPS),
    "rloo-clipped": online("rloo", clip_range=0.2, **GROUPS),
    "reinforce": online("reinforce", **WHOLE),
    "reinforce-none": online("reinforce", baseline="none", **WHOLE),
    "reinforce-greedy": online("reinforce", baseline="greedy", **WHOLE),
    "reinforce++": online("reinforce++"),
    "archer": online("archer", critic_steps=3, critic_batch_size=6, actor_turns=8, token_baseline=True),
    "rft": online("rft", minibatches=2, improve_steps=2, **GROUPS),
    "online-dpo": online("online-dpo", minibatches=2, **GROUPS),
    "online-dpo-ipo": online("online-dpo", loss="ipo", label_smoothing=0.0, **GROUPS),
    "sft": offline("sft", rows(), **PLAYED),
    "sft-llama": offline("sft", rows(), model=llama()),
    "sft-packing": offline("sft", rows(), packing=True),
    "sft-lora": offline("sft", rows(), **LORA),
    "sft-prompts": offline("sft", rows(), completion_only=False, max_tokens_per_microbatch=24),
    "filtered-bc": offline("filtered-bc", rows(), percentile=0.5),
    "rwr": offline("rwr", rows(), **PLAYED),
    "rwr-prompt": offline("rwr", rows(), baseline="prompt", temperature=0.5),
    "ilql": offline("ilql", rows(), target_every=2, target_alpha=0.5, **PLAYED),
    "ilql-linear": offline("ilql", rows(), head="linear", num_q=1, standardize_returns=True),
    "ilql-awac": offline("ilql", rows(), awac_beta=2.0, decode_beta=4.0, decode_top_k=3, **PLAYED),
    "monte-carlo": offline("monte-carlo", rows(), **PLAYED),
    "dpo": offline("dpo", pairs()),
    "dpo-lora": offline("dpo", pairs(), **LORA),
    "dpo-ipo": offline("dpo", pairs(), loss="ipo"),
    "dpo-hinge": offline("dpo", pairs(), loss="hinge"),
    "dpo-cdpo": offline("dpo", pairs(), loss="cdpo", label_smoothing=0.1),
    "dpo-robust": offline("dpo", pairs(), loss="robust", label_smoothing=0.1),
    "dpo-precomputed": offline("dpo", pairs(), precompute_reference=True, max_tokens_per_microbatch=24),
    "orpo": offline("orpo", pairs()),
    "simpo": offline("simpo", pairs()),
    "cpo": offline("cpo", pairs()),
    "kto": offline("kto", labelled()),
    "reward-model-pairs": offline("reward-model", {"pairs": pairs()}),
    "reward-model-ratings": offline("reward-model", {"ratings": ratings()}),
    "reward-model-both": offline(
        "reward-model", {"pairs": pairs(), "ratings": ratings()}, heads=2, dropout=0.1, centering_coef=0.01
    ),
    "sb3": {
        name: value for name, value in online("sb3", n_steps=8).items() if name != "episodes_per_iteration"
    },
    "best-of-n": {
        name: value
        for name, value in online("best-of-n", n=3).items()
        if name not in ("iterations", "episodes_per_iteration", "epochs", "minibatches", "learning_rate")
    },
}
"""Name -> arguments of ``textenv.train``."""
DOUBLE = (
    *("ppo", "ppo-llama", "ppo-micro-batches", "ppo-packing", "ppo-lora", "ppo-separate", "ppo-kl-loss"),
    *("ppo-kl-adaptive", "ppo-ptx", "ppo-ema", "a2c", "nlpo", "grpo", "grpo-packing", "grpo-lora"),
    *("grpo-gspo", "grpo-dapo", "rloo", "reinforce", "reinforce-none", "reinforce-greedy", "reinforce++"),
    *("rft", "online-dpo", "sft", "sft-packing", "sft-lora", "filtered-bc", "rwr", "ilql", "ilql-linear"),
    *("monte-carlo", "dpo", "dpo-lora", "orpo", "simpo", "cpo", "kto", "reward-model-pairs"),
    *("reward-model-ratings", "best-of-n"),
)
"""Runs that are also made with weights of 64 bits."""
RESUMED = ("ppo-kl-adaptive", "ppo-ema", "ppo-lora", "grpo-dapo", "reinforce-greedy", "sft", "ilql", "dpo")
"""Runs that are also made in two parts, the second one from a checkpoint: the hashes are the same."""
