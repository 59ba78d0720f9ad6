"""One PPO cycle against TRL 1.12's PPOTrainer: ``python -m benchmarks.ppo_cycle [--json FILE] [--quick]``.

A cycle is rollout, score and update on a random GPT-2 2x128 with a one-layer reward model: 16 episodes in 16 rows (8
for the large vocabulary), 4 epochs of one optimizer step. Every contender lives in a process of its own, computes on
one thread, and does one cycle when its turn comes; the best of five turns counts. TRL runs in the environment that
``benchmarks/trl_env.sh`` makes, as it is and with its garbage collections taken out ("trl_nogc").

Responses are of fixed length, or end by EOS (geometric, mean 24, cap 96). There a turn is several cycles, because the
lengths are random, and TRL plays twice: as transformers lets it, ending a batch's generation with its longest
response, and generating, training and masking the full 96 tokens ("trl_full"), as it does when its policy's
generation config carries no EOS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, interleave, matmul_flops, one_thread, print_table, write_json
from benchmarks.models import ModelShape
from benchmarks.worker import ROOT, Worker, close_all

TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"
OURS = ("shared", "separate")
THEIRS = ("trl", "trl_nogc")


def make_case(
    name: str, *, vocab: int, batch: int, new_tokens: int, eos_probability: float = 0.0, cycles: int = 1
) -> dict[str, Any]:
    """A case as the workers read it."""
    shape = ModelShape(layers=2, width=128, heads=4, vocab=vocab, eos_probability=eos_probability)
    return {
        "name": name,
        "vocab": vocab,
        "model": asdict(shape),
        "batch": batch,
        "prompts": 256,
        "prompt_tokens": 16,
        "new_tokens": new_tokens,
        "epochs": 4,
        "minibatches": 1,
        "learning_rate": 3e-6,
        "cycles": cycles,
    }


CASES = (
    make_case("fixed 32", vocab=1024, batch=16, new_tokens=32),
    make_case("fixed 32", vocab=50_257, batch=8, new_tokens=32),
    make_case("EOS, mean 24, cap 96", vocab=1024, batch=16, new_tokens=96, eos_probability=1 / 24, cycles=4),
    make_case("EOS, mean 24, cap 96", vocab=50_257, batch=8, new_tokens=96, eos_probability=1 / 24, cycles=2),
)


def contender(name: str, case: Mapping[str, Any]) -> Worker:
    """Start one contender's process.

    Raises:
        ValueError: if there is no contender of that name.
        FileNotFoundError: if TRL's environment has not been made.
    """
    if name in ("shared", "separate", "shared_packed"):
        options = {"separate_value_model": name == "separate", "packing": name.endswith("packed")}
        return Worker(sys.executable, "benchmarks.textenv_contender", {**case, **options})
    if name in ("trl", "trl_nogc", "trl_full"):
        if not TRL_PYTHON.exists():
            raise FileNotFoundError(f"{TRL_PYTHON} is missing; run benchmarks/trl_env.sh first")
        options = {"gc": name == "trl", "stop_early": name != "trl_full"}
        return Worker(TRL_PYTHON, "benchmarks.trl_contender", {**case, **options})
    raise ValueError(
        f"contender must be one of shared, separate, shared_packed, trl, trl_nogc, trl_full, got {name!r}"
    )


def contenders_of(case: Mapping[str, Any], *, ours_only: bool = False) -> list[str]:
    """Who takes part in a case."""
    names = list(OURS)
    if not ours_only:
        names += [*THEIRS, *(["trl_full"] if case["model"]["eos_probability"] else [])]
    return names


def turn(worker: Worker, cycles: int) -> dict[str, float]:
    """``cycles`` cycles of one contender: sums of its seconds, samples and parts; its memory so far."""
    total: dict[str, float] = {}
    for _ in range(cycles):
        for key, value in worker.run().items():
            total[key] = value if key.startswith("peak") else total.get(key, 0.0) + value
    return total


def run_case(
    case: Mapping[str, Any], names: Sequence[str], *, repeats: int, warmup: int = 1
) -> dict[str, Any]:
    """All contenders of one case, interleaved: samples/s of the best turn, ratios, memory, where time goes."""
    workers: dict[str, Worker] = {}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for name in names:
            workers[name] = contender(name, case)

        def player(name: str) -> float:
            result = turn(workers[name], case["cycles"])
            turns[name].append(result)
            return result["samples"] / result["seconds"]

        rates = interleave(
            {name: lambda name=name: player(name) for name in names}, repeats=repeats, warmup=warmup
        )
    finally:
        close_all(list(workers.values()))
    best = {name: max(values) for name, values in rates.items()}
    fastest = {
        name: max(turns[name][warmup:], key=lambda result: result["samples"] / result["seconds"])
        for name in names
    }
    figures: dict[str, Any] = {
        "name": case["name"],
        "vocab": case["vocab"],
        "batch": case["batch"],
        "samples_s": best,
        "turns": rates,
        "peak_mb": {name: turns[name][-1]["peak_mb"] for name in names},
        "peak_total_mb": {name: turns[name][-1]["peak_total_mb"] for name in names},
        "parts": {
            name: {k: v for k, v in fastest[name].items() if not k.startswith("peak")} for name in names
        },
    }
    for ours in OURS:
        for suffix, theirs in (("", "trl_nogc"), ("_with_gc", "trl"), ("_full", "trl_full")):
            if ours in best and theirs in best:
                figures[f"ratio_{ours}{suffix}"] = best[ours] / best[theirs]
    return figures


def report(figures: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    for case in figures["cases"]:
        title = f"{case['name']} tokens, vocabulary {case['vocab']:,}, batch {case['batch']}"
        against = case["samples_s"].get("trl_nogc")
        rows = []
        for name, rate in case["samples_s"].items():
            parts = case["parts"][name]
            rows.append(
                (
                    name,
                    rate,
                    rate / against if against else None,
                    case["peak_mb"][name],
                    *(
                        parts[part] / parts["seconds"] if part in parts else None
                        for part in ("rollout", "score", "update")
                    ),
                    parts["update_flops"] / parts["update"] / figures["matmul_flops"]
                    if "update_flops" in parts
                    else None,
                )
            )
        columns = (
            "contender",
            "samples/s",
            "x trl_nogc",
            "peak MB",
            "rollout",
            "score",
            "update",
            "update / matmul",
        )
        print_table(title, columns, rows)
    print(
        f"one thread, interleaved, best of n; matmul {figures['matmul_flops'] / 1e9:.1f} GFLOP/s in float32"
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = arguments("One PPO cycle against TRL's PPOTrainer.")
    parser.add_argument("--ours-only", action="store_true", help="leave TRL out: for work on our own speed")
    parser.add_argument(
        "--cases", type=_indices, default=range(len(CASES)), metavar="0,1,...", help="only these"
    )
    options = parser.parse_args()
    one_thread()
    figures: dict[str, Any] = {"matmul_flops": matmul_flops(), "cases": []}
    for index in options.cases:
        case = {**CASES[index]}
        if options.quick:
            case["cycles"] = min(2, case["cycles"])
        names = contenders_of(case, ours_only=options.ours_only)
        figures["cases"].append(run_case(case, names, repeats=2 if options.quick else 5))
    report(figures)
    write_json(options.json, figures)


def _indices(text: str) -> list[int]:
    chosen = [int(part) for part in text.split(",")]
    if not all(0 <= index < len(CASES) for index in chosen):
        raise argparse.ArgumentTypeError(f"cases must lie in [0, {len(CASES)}), got {text}")
    return chosen


if __name__ == "__main__":
    main()
