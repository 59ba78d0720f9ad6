"""One PPO cycle against TRL 1.12's PPOTrainer: ``python -m benchmarks.ppo_cycle [--json FILE] [--quick]``.

A cycle is rollout, score and update on a random GPT-2 2x128 with a one-layer reward model: 16 episodes in 16
rows (8 for the large vocabulary), 4 epochs of one optimizer step. Every contender runs in a separate process
on one thread, and does one cycle per turn; the best of five turns counts. TRL runs in the Python environment
that ``benchmarks/trl_env.sh`` makes, unchanged ("trl") and without its garbage collections ("trl_nogc").

Responses have a fixed length, or end by EOS (geometric, mean 24, cap 96). With EOS, lengths are random. So a
turn is several cycles, and samples/s are tokens/s divided by the expected number of tokens that the contender
processes per sample: short responses drawn by chance do not count as speed. TRL has two variants there.
"trl_nogc" ends a batch's generation with its longest response. "trl_full" generates, trains and masks the
full 96 tokens, as TRL does if the policy's generation config has no EOS; it has no garbage collections
either. ``ratio_shared`` and ``ratio_separate`` are against "trl_full" there, with the suffix ``_trimmed``
against "trl_nogc". "shared_packed" is "shared" with ``packing=True``, where lengths are random.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.common import arguments, interleave, matmul_flops, one_thread, print_table, write_json
from benchmarks.models import ModelShape
from benchmarks.worker import ROOT, Worker, close_all

TRL_PYTHON = ROOT / ".venv-trl" / "bin" / "python"
OURS = ("shared", "separate", "shared_packed")
THEIRS = ("trl_nogc", "trl", "trl_full")
ALL = (*OURS, *THEIRS)
PARTS = ("rollout", "score", "update")


def make_case(
    name: str, *, vocab: int, batch: int, new_tokens: int, eos_probability: float = 0.0, cycles: int = 1
) -> dict[str, Any]:
    """A case in the form that the workers read; a turn is ``cycles`` cycles."""
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
    if name in OURS:
        options = {"separate_value_model": name == "separate", "packing": name.endswith("packed")}
        return Worker(sys.executable, "benchmarks.textenv_contender", {**case, **options})
    if name in THEIRS:
        if not TRL_PYTHON.exists():
            raise FileNotFoundError(f"{TRL_PYTHON} is missing; run benchmarks/trl_env.sh first")
        options = {"gc": name == "trl", "stop_early": name != "trl_full"}
        return Worker(TRL_PYTHON, "benchmarks.trl_contender", {**case, **options})
    raise ValueError(f"contender must be one of {', '.join(ALL)}, got {name!r}")


def contenders_of(case: Mapping[str, Any], *, ours_only: bool = False) -> list[str]:
    """The contenders of a case."""
    fixed = not case["model"]["eos_probability"]
    only_varying = ("trl_full", "shared_packed")
    return [name for name in (OURS if ours_only else ALL) if not (fixed and name in only_varying)]


def turn(worker: Worker, cycles: int) -> dict[str, float]:
    """``cycles`` cycles of one contender: sums of its seconds, samples and parts; its memory so far."""
    total: dict[str, float] = {}
    for _ in range(cycles):
        for key, value in worker.run().items():
            total[key] = value if key.startswith("peak") else total.get(key, 0.0) + value
    return total


def expected_tokens(name: str, case: Mapping[str, Any]) -> float:
    """Tokens that a contender is expected to train per response, padding included.

    Ours train the tokens that were generated, TRL those of the batch's longest response, or of the cap.
    """
    chance, cap = case["model"]["eos_probability"], case["new_tokens"]
    if not chance or name == "trl_full":
        return float(cap)
    rows = 1 if name in OURS else case["batch"]
    return sum(1.0 - (1.0 - (1.0 - chance) ** t) ** rows for t in range(cap))


def run_case(
    case: Mapping[str, Any], names: Sequence[str], *, repeats: int, warmup: int = 1
) -> dict[str, Any]:
    """All contenders of one case, interleaved: samples/s of the best turn, ratios, memory, parts."""
    workers: dict[str, Worker] = {}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}

    expected = {name: expected_tokens(name, case) for name in names}

    def play(name: str) -> float:
        turns[name].append(turn(workers[name], case["cycles"]))
        return turns[name][-1]["tokens"] / turns[name][-1]["seconds"] / expected[name]

    try:
        for name in names:
            workers[name] = contender(name, case)
        rates = interleave(
            {name: functools.partial(play, name) for name in names}, repeats=repeats, warmup=warmup
        )
    finally:
        close_all(list(workers.values()))
    best = {name: max(values) for name, values in rates.items()}
    fastest = {name: turns[name][warmup + rates[name].index(best[name])] for name in names}
    figures: dict[str, Any] = {
        "name": case["name"],
        "vocab": case["vocab"],
        "batch": case["batch"],
        "samples_s": best,
        "cpu_samples_s": {
            name: max(t["tokens"] / t["cpu_seconds"] for t in turns[name][warmup:]) / expected[name]
            for name in names
        },
        "expected_tokens": expected,
        "turns": rates,
        "parts": {name: _without_peaks(fastest[name]) for name in names},
        **{key: {name: turns[name][-1][key] for name in names} for key in ("peak_mb", "peak_total_mb")},
    }
    return figures | ratios("ratio", best) | ratios("cpu_ratio", figures["cpu_samples_s"])


def ratios(prefix: str, rates: Mapping[str, float]) -> dict[str, float]:
    """Speed of textenv's contenders divided by TRL's; the module's docstring explains the names."""
    against = {"": "trl_nogc", "_with_gc": "trl"}
    if "trl_full" in rates:
        against |= {"": "trl_full", "_trimmed": "trl_nogc"}
    return {
        f"{prefix}_{ours}{suffix}": rates[ours] / rates[theirs]
        for ours in OURS
        for suffix, theirs in against.items()
        if ours in rates and theirs in rates
    }


def _without_peaks(result: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in result.items() if not key.startswith("peak")}


def report(figures: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    for case in figures["cases"]:
        rows = []
        against = case["samples_s"].get("trl_nogc")
        for name, rate in case["samples_s"].items():
            parts = case["parts"][name]
            shares = [f"{parts[part] / parts['seconds']:.0%}" if part in parts else None for part in PARTS]
            speed = parts["update_flops"] / parts["update"] if "update_flops" in parts else None
            share = None if speed is None else f"{speed / figures['matmul_flops']:.0%}"
            relative = None if against is None else rate / against
            cpu = case["cpu_samples_s"]
            cpu_relative = None if against is None else cpu[name] / cpu["trl_nogc"]
            tokens = case["expected_tokens"][name]
            rows.append((name, rate, relative, cpu_relative, tokens, case["peak_mb"][name], *shares, share))
        print_table(
            f"{case['name']} tokens, vocabulary {case['vocab']:,}, batch {case['batch']}",
            (
                "contender",
                "samples/s",
                "x trl_nogc",
                "by CPU time",
                "tokens",
                "peak MB",
                *PARTS,
                "update / matmul",
            ),
            rows,
        )
    gflops = figures["matmul_flops"] / 1e9
    print(
        "One thread, interleaved, best of n. By CPU time: the same ratio in processor seconds, which other "
        "processes on the machine disturb less.\nTokens: expected in training per response, padding too. "
        f"A large float32 matmul reaches {gflops:.1f} GFLOP/s here."
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = arguments("One PPO cycle against TRL's PPOTrainer.")
    parser.add_argument("--ours-only", action="store_true", help="leave TRL out: for work on our own speed")
    parser.add_argument(
        "--cases", type=_indices, default=range(len(CASES)), metavar="0,1,...", help="only these cases"
    )
    options = parser.parse_args()
    one_thread()
    figures: dict[str, Any] = {"matmul_flops": matmul_flops(), "cases": []}
    for index in options.cases:
        names = contenders_of(CASES[index], ours_only=options.ours_only)
        figures["cases"].append(run_case(CASES[index], names, repeats=2 if options.quick else 5))
        figures["matmul_flops"] = max(figures["matmul_flops"], matmul_flops())
    report(figures)
    write_json(options.json, figures)


def _indices(text: str) -> list[int]:
    chosen = [int(part) for part in text.split(",")]
    if not all(0 <= index < len(CASES) for index in chosen):
        raise argparse.ArgumentTypeError(f"cases must lie in [0, {len(CASES)}), got {text}")
    return chosen


if __name__ == "__main__":
    main()
