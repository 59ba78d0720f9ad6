"""Supervised fine-tuning on short episodes with and without packing: ``python -m benchmarks.packing``.

Tokens/s of optimizer steps, padding not counted, on random GPT-2s. Prompts have 2 to 16 tokens, responses
geometric lengths. Without packing, a step runs its episodes in a few groups of similar length.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import torch

from benchmarks.common import arguments, interleave, one_thread, print_table, write_json
from benchmarks.models import ModelShape, language_model
from textenv.agents.sft import SFT, SFTConfig
from textenv.episodes.batch import EpisodeBatch

CASES = (
    {"layers": 2, "width": 128, "heads": 4, "vocab": 1024, "mean": 24, "cap": 96, "batch": 16},
    {"layers": 2, "width": 128, "heads": 4, "vocab": 1024, "mean": 24, "cap": 96, "batch": 64},
    {"layers": 4, "width": 256, "heads": 4, "vocab": 1024, "mean": 12, "cap": 48, "batch": 32},
    {"layers": 4, "width": 256, "heads": 4, "vocab": 8000, "mean": 8, "cap": 32, "batch": 32},
)
EPISODES = 256


def short_episodes(vocab: int, *, mean: int, cap: int, seed: int = 0) -> EpisodeBatch:
    """Episodes of random words; responses have geometric lengths of this mean, at most ``cap``."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(2, 17, (EPISODES,), generator=generator)
    lengths = torch.empty(EPISODES).geometric_(1 / mean, generator=generator).long().clamp_max(cap)

    def words(sizes: torch.Tensor) -> list[list[int]]:
        return [torch.randint(vocab - 2, (int(n),), generator=generator).tolist() for n in sizes]

    return EpisodeBatch.from_ids(words(prompts), words(lengths))


def steps_rate(agent: SFT) -> float:
    """Tokens per CPU second over optimizer steps on all the data."""
    size, started = agent.config.batch_size, time.process_time()
    for rows in torch.arange(EPISODES).split(size):
        agent.optimizer_step(agent.batch(rows))
    return float(agent.dataset.lengths.sum()) / (time.process_time() - started)


def run_case(case: dict[str, Any], *, repeats: int) -> dict[str, Any]:
    """Best rate of each, taking turns."""
    size = {name: case[name] for name in ("layers", "width", "heads", "vocab")}
    data = short_episodes(case["vocab"], mean=case["mean"], cap=case["cap"])
    agents = {}
    for name in ("groups", "packed"):
        config = SFTConfig(packing=name == "packed", batch_size=case["batch"], completion_only=True)
        agents[name] = SFT(language_model(ModelShape(**size)), dataset=data, config=config)
    rates = interleave(
        {name: functools.partial(steps_rate, agent) for name, agent in agents.items()},
        repeats=repeats,
        warmup=1,
    )
    best = {name: max(values) for name, values in rates.items()}
    return {**case, "tokens_s": best, "gain": best["packed"] / best["groups"]}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    options = arguments("Supervised fine-tuning with and without packing.").parse_args()
    one_thread()
    found = [run_case(case, repeats=2 if options.quick else 5) for case in CASES]
    rows = [
        (
            f"GPT-2 {case['layers']}x{case['width']}, vocabulary {case['vocab']:,}",
            case["batch"],
            f"{case['mean']}, cap {case['cap']}",
            case["tokens_s"]["groups"],
            case["tokens_s"]["packed"],
            case["gain"],
        )
        for case in found
    ]
    columns = ("model", "batch", "mean response", "groups", "packed", "gain")
    print_table("SFT, tokens per CPU second", columns, rows, "One thread, interleaved, best of n.")
    write_json(options.json, {"cases": found})


if __name__ == "__main__":
    main()
