"""Decoding on one device: rollouts against ``transformers`` generate and against the memory bandwidth.

A part of ``benchmarks.scaling``. Two workloads: responses of one length, and responses that end by EOS, half
as long on average. A rollout gives each finished row the next prompt. ``generate`` processes batches of as
many prompts and pads each to its longest row. On both sides, tokens up to and including EOS count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import interleave, seconds
from benchmarks.models import ModelShape, language_model, random_prompts
from benchmarks.rollout import Workload, generate_rate, make_envs
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.rollout import collect


def eos_probability(mean: float, longest: int) -> float:
    """Probability of EOS per step for which responses have ``mean`` tokens, cut at ``longest``.

    The mean of a geometric length cut at T is (1 - (1 - p)^T) / p, which falls with p.

    >>> round(eos_probability(1.5, 2), 6)
    0.5
    """
    low, high = 1e-9, 1.0
    for _ in range(100):
        p = (low + high) / 2
        low, high = (p, high) if (1 - (1 - p) ** longest) / p > mean else (low, p)
    return p


def decoded_bytes(shape: ModelShape, lengths: Tensor, *, prompt_tokens: int, steps: int, width: int) -> float:
    """Bytes that a rollout has to read: the weights at every step, and the KV cache of each token's prefix.

    Args:
        shape: of the model; its LM head is its embedding.
        lengths: (B,) response tokens of each episode.
        prompt_tokens: tokens of each prompt.
        steps: decoding steps of the rollout.
        width: bytes of a number.
    """
    n = lengths.double()
    cached = float((prompt_tokens * n + n * (n - 1) / 2).sum())
    weights = 12 * shape.layers * shape.width**2 + shape.vocab * shape.width
    return (weights * steps + 2 * shape.layers * shape.width * cached) * width


class _Steps:
    """A policy that counts how often it acts."""

    def __init__(self, policy: DecodingPolicy) -> None:
        self.policy = policy
        self.count = 0

    def attach(self, env: Any) -> None:
        self.policy.attach(env)

    def act(self, obs: Mapping[str, Any], key: Any, *, active: Any) -> tuple[Any, dict[str, Any]]:
        self.count += 1
        return self.policy.act(obs, key, active=active)


def against_generate(
    work: Workload, *, device: str, dtype: torch.dtype, bandwidth: float, repeats: int
) -> dict[str, Any]:
    """Useful tokens per second of both sides in turn, their ratio, and the share of the bandwidth limit.

    Args:
        work: what is generated.
        device: where.
        dtype: of the weights.
        bandwidth: memory bandwidth of the device in bytes per second.
        repeats: turns of each side, of which the best counts; one more is a warm-up.
    """
    model: nn.Module = language_model(work.shape).to(device, dtype)
    envs, policy = make_envs(work, device=device), _Steps(DecodingPolicy(model))
    prompts = random_prompts(work.shape, count=work.episodes, length=work.prompt_tokens).to(device)
    shares: list[float] = []

    def rollout() -> float:
        found: list[EpisodeBatch] = []
        policy.count = 0
        took = seconds(lambda: found.append(collect(envs, policy, work.episodes, seed=0)))
        lengths = found[0].response_lengths
        needed = decoded_bytes(
            work.shape,
            lengths,
            prompt_tokens=work.prompt_tokens,
            steps=policy.count,
            width=dtype.itemsize,
        )
        shares.append(needed / bandwidth / took)
        return float(lengths.sum()) / took

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rollout()
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None
    turns = interleave(
        {"rollout": rollout, "generate": lambda: generate_rate(model, work, prompts)}, repeats=repeats
    )
    best = {name: max(rates) for name, rates in turns.items()}
    return {
        "decode_tokens_s": best["rollout"],
        "generate_tokens_s": best["generate"],
        "ratio": best["rollout"] / best["generate"],
        "share_of_bandwidth": max(shares[1:]),
        "peak_gb": peak,
        "turns": turns,
    }


def both_workloads(
    shape: ModelShape, *, rows: int, prompt_tokens: int, new_tokens: int, **options: Any
) -> dict[str, dict[str, Any]]:
    """Responses of one length, and ended by EOS with half that mean; ``options`` of ``against_generate``."""
    shape = replace(shape, positions=prompt_tokens + new_tokens)
    ended = replace(shape, eos_probability=eos_probability(new_tokens / 2, new_tokens))
    size = {"rows": rows, "episodes": 2 * rows, "max_new_tokens": new_tokens, "prompt_tokens": prompt_tokens}
    return {
        f"fixed {new_tokens} tokens": against_generate(Workload(shape=shape, **size), **options),
        f"ended, mean {new_tokens / 2:g}": against_generate(Workload(shape=ended, **size), **options),
    }
