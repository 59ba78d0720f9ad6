"""How PPO scales: ``python -m benchmarks.scaling [--processes 1,2,4] [--json FILE] [--quick]``.

Over processes: tokens per second of rollout and update. The episodes of an iteration are the same for every
number of processes (strong scaling). Each number runs in fresh processes with one thread each, and one GPU
each on a machine with GPUs. The best of the iterations after the first counts.

On one GPU, everything in bfloat16 with 256 rows, prompts of 64 and responses of 128 tokens. Decoding with the
shape of GPT-2 small: tokens per second of a rollout and of ``transformers`` generate, and the share of the
limit set by the measured memory bandwidth (weights and KV cache are read once per step). PPO over model sizes
and vocabularies: the same figures of its rollout, the update's share of the measured matmul rate, peak
memory, and how an iteration's time is split. Without a GPU this part is skipped, except with ``--quick``:
then all of it runs on the CPU with a tiny float32 model, as a check and not as a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import decoding
from benchmarks.common import arguments, one_thread, print_table, seconds, write_json
from benchmarks.models import ModelShape
from benchmarks.textenv_contender import build_agent, update_flops
from benchmarks.worker import ONE_THREAD, ROOT

SMALL = ModelShape(layers=2, width=128, heads=4, vocab=1024)
SIZES = (
    ModelShape(layers=12, width=768, heads=12, vocab=50_304),
    ModelShape(layers=24, width=1024, heads=16, vocab=50_304),
    ModelShape(layers=24, width=2048, heads=16, vocab=50_304),
    ModelShape(layers=12, width=768, heads=12, vocab=8_192),
    ModelShape(layers=12, width=768, heads=12, vocab=151_936),
)
"""0.1, 0.4 and 1.3 billion weights; the smallest with a small and a large vocabulary."""
PARTS = ("rollout", "score", "update")
RATES = ("rollout_tokens_s", "train_tokens_s", "samples_s")
NO_GPU = "it needs a GPU and this machine has none"


def make_case(
    shape: ModelShape,
    *,
    rows: int,
    episodes: int,
    new_tokens: int,
    prompt_tokens: int = 16,
    dtype: str = "float32",
) -> dict[str, Any]:
    """What ``build_agent`` takes; ``rows`` are one process's, ``episodes`` those of all."""
    return {
        "model": asdict(replace(shape, positions=prompt_tokens + new_tokens)),
        "dtype": dtype,
        "batch": rows,
        "episodes": episodes,
        "prompts": 256,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "epochs": 2,
        "minibatches": 2,
        "learning_rate": 3e-6,
        "separate_value_model": False,
        "packing": False,
    }


def run_iterations(
    case: Mapping[str, Any], iterations: int, *, device: str = "cpu"
) -> tuple[Any, list[dict[str, float]]]:
    """Train and return the agent and its rows of metrics, the warm-up's left out."""
    agent = build_agent(
        case,
        [],
        device=device,
        iterations=iterations + 1,
        episodes_per_iteration=case["episodes"],
        max_tokens_per_microbatch=65_536,
    )
    return agent, agent.learn().history[1:]


# -- over processes ------------------------------------------------------------------------------------------


def over_processes(case: Mapping[str, Any], counts: Sequence[int], iterations: int) -> list[dict[str, Any]]:
    """One row for each number of processes."""
    return [{"processes": count, **in_processes(case, count, iterations)} for count in counts]


def in_processes(case: Mapping[str, Any], count: int, iterations: int) -> dict[str, float]:
    """The best tokens per second of ``count`` fresh processes.

    Raises:
        RuntimeError: if one of them fails; the error has what it said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, **ONE_THREAD, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    if torch.cuda.is_available():
        del shared["CUDA_VISIBLE_DEVICES"]
    command = [sys.executable, "-m", "benchmarks.scaling", "--worker", json.dumps(dict(case))]
    command += ["--iterations", str(iterations)]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate() for process in started]
    for process, (_, error) in zip(started, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of the benchmark failed:\n{error}")
    return json.loads(said[0][0].splitlines()[-1])


def worker(case: Mapping[str, Any], iterations: int) -> dict[str, float]:
    """The work of one process; its figures are those of all processes together."""
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    _, history = run_iterations(case, iterations, device=device)
    names = ("throughput/rollout_tokens_s", "throughput/train_tokens_s")
    best = {name.removeprefix("throughput/"): max(row[name] for row in history) for name in names}
    cycle = min(sum(row[f"time/{part}"] for part in PARTS) for row in history)
    return {**best, "samples_s": case["episodes"] / cycle}


# -- on one device -------------------------------------------------------------------------------------------


def limits(device: str, dtype: torch.dtype, *, size: int) -> dict[str, float]:
    """Limits of the device: bytes per second of a copy (read and written), FLOP/s of a matrix product."""
    block = torch.empty(size * size * 8, device=device, dtype=dtype)
    copy = min(seconds(lambda: block.clone()) for _ in range(5))
    a = torch.randn(size, size, device=device, dtype=dtype)
    product = min(seconds(lambda: a @ a) for _ in range(5))
    return {
        "bandwidth": 2 * block.numel() * block.element_size() / copy,
        "matmul_flops": 2 * size**3 / product,
    }


def step_bytes(shape: ModelShape, *, rows: int, length: float, width: int) -> float:
    """Bytes that a decoding step has to read: every weight once, and each row's keys and values.

    Args:
        shape: of the model; its LM head is its embedding.
        rows: episodes that decode together.
        length: mean tokens in a row's cache.
        width: bytes of a number.
    """
    weights = 12 * shape.layers * shape.width**2 + shape.vocab * shape.width
    cache = 2 * shape.layers * shape.width * rows * length
    return (weights + cache) * width


def on_device(case: Mapping[str, Any], device: str, limit: Mapping[str, float]) -> dict[str, Any]:
    """Decoding, update, memory and split of one model size."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    agent, history = run_iterations(case, 3, device=device)
    best = {part: min(row[f"time/{part}"] for row in history) for part in PARTS}
    shape, tokens = ModelShape(**case["model"]), case["episodes"] * case["new_tokens"]
    steps = tokens / case["batch"]
    mean_length = case["prompt_tokens"] + case["new_tokens"] / 2
    width = getattr(torch, case["dtype"]).itemsize
    step = step_bytes(shape, rows=case["batch"], length=mean_length, width=width)
    needed = step * steps / limit["bandwidth"]
    flops = update_flops(agent, tokens + case["episodes"] * case["prompt_tokens"], tokens, case["epochs"])
    weights = sum(p.numel() for p in agent.policy.model.parameters())
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None
    total = sum(best.values())
    del agent
    return {
        "weights": weights,
        "vocab": shape.vocab,
        "decode_tokens_s": tokens / best["rollout"],
        "share_of_bandwidth": needed / best["rollout"],
        "share_of_matmul": flops / best["update"] / limit["matmul_flops"],
        "peak_gb": peak,
        **{f"share_{part}": best[part] / total for part in PARTS},
    }


def one_device(device: str, *, quick: bool) -> dict[str, Any]:
    """Everything that is measured on one device; ``quick``: tiny, in float32."""
    if quick:
        dtype, shapes = torch.float32, (SMALL,)
        size = {"rows": 16, "prompt_tokens": 16, "new_tokens": 32}
    else:
        dtype, shapes = torch.bfloat16, SIZES
        size = {"rows": 256, "prompt_tokens": 64, "new_tokens": 128}
    limit = limits(device, dtype, size=512 if quick else 8192)
    name = str(dtype).removeprefix("torch.")
    cases = [make_case(shape, episodes=2 * size["rows"], dtype=name, **size) for shape in shapes]
    options: dict[str, Any] = {"device": device, "dtype": dtype, "repeats": 2 if quick else 5}
    return {
        "device": device,
        "dtype": name,
        "limits": limit,
        "decoding": decoding.both_workloads(shapes[0], bandwidth=limit["bandwidth"], **size, **options),
        "sizes": [on_device(case, device, limit) for case in cases],
    }


def report(figures: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    rows = figures["processes"]
    alone = rows[0]
    print_table(
        f"PPO over processes, {figures['episodes']} episodes per iteration",
        ("processes", "rollout tokens/s", "update tokens/s", "samples/s", "speed-up"),
        [
            (str(row["processes"]), *(row[name] for name in RATES), row["samples_s"] / alone["samples_s"])
            for row in rows
        ],
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the end. Speed-up: samples/s against "
        "the first row.",
    )
    if isinstance(figures["device"], str):
        print(f"Decoding, model sizes and vocabularies on one GPU: skipped, {figures['device']}.")
        return
    found = figures["device"]
    limit, where = found["limits"], f"{found['device']}, {found['dtype']}"
    names = ("decode_tokens_s", "generate_tokens_s", "ratio", "share_of_bandwidth", "peak_gb")
    print_table(
        f"Decoding on {where}",
        ("responses", "rollout tokens/s", "generate tokens/s", "ratio", "of the bandwidth", "peak GB"),
        [(title, *(row[name] for name in names)) for title, row in found["decoding"].items()],
        f"{limit['bandwidth'] / 1e9:,.0f} GB/s of a copy, {limit['matmul_flops'] / 1e12:,.3g} TFLOP/s of a "
        "matrix product.",
    )
    columns = ("weights", "vocab", "decode_tokens_s", "share_of_bandwidth", "share_of_matmul", "peak_gb")
    columns += tuple(f"share_{part}" for part in PARTS)
    print_table(f"PPO on {where}", columns, [[row[name] for name in columns] for row in found["sizes"]])


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = arguments("How PPO scales over processes, model sizes and vocabularies.")
    parser.add_argument("--processes", type=_counts, default=(1, 2), metavar="1,2,...")
    parser.add_argument("--worker", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, default=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    if options.worker is not None:
        print(json.dumps(worker(json.loads(options.worker), options.iterations)))
        return
    case = make_case(SMALL, rows=32, episodes=64, new_tokens=32)
    iterations = 2 if options.quick else options.iterations
    figures: dict[str, Any] = {
        "episodes": case["episodes"],
        "processes": over_processes(case, options.processes, iterations),
        "device": NO_GPU,
    }
    if torch.cuda.is_available() or options.quick:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        figures["device"] = one_device(device, quick=options.quick)
    report(figures)
    write_json(options.json, figures)


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"processes must be >= 1, got {text}")
    return counts


if __name__ == "__main__":
    main()
