"""The rollout against ``transformers`` generate: ``python -m benchmarks.rollout [--json FILE] [--quick]``.

Both sides decode with the same random GPT-2 and the same sampling in one process, on one thread, in turns;
the best of five turns counts. Useful tokens are those up to and including the end of an episode. textenv
plays all prompts in the vector environment; the last steps, with few active rows, are counted. The other side
calls ``generate`` on batches of as many prompts, which pads until a batch's longest row has ended.

Shape letters: N environment rows, P prompts, V vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import arguments, interleave, one_thread, print_table, seconds, write_json
from benchmarks.models import ModelShape, language_model, random_prompts, word_tokenizer
from benchmarks.worker import Worker
from textenv.envs.vector_env import TextVectorEnv
from textenv.generation.decoder import Decoder
from textenv.generation.policy import DecodingPolicy
from textenv.prompts.prompt_set import PromptSet
from textenv.rollout import collect


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is generated."""

    shape: ModelShape
    rows: int
    """N, and the batch size of ``generate``."""
    episodes: int
    max_new_tokens: int
    prompt_tokens: int = 16


GPT2_4X256 = ModelShape(layers=4, width=256, heads=4, vocab=5000)
VARIABLE = Workload(
    shape=replace(GPT2_4X256, eos_probability=1 / 24), rows=32, episodes=256, max_new_tokens=96
)
FIXED = Workload(shape=GPT2_4X256, rows=32, episodes=256, max_new_tokens=64)
GPT2_45M = Workload(
    shape=ModelShape(layers=9, width=512, heads=8, vocab=32_000, eos_probability=1 / 24),
    rows=64,
    episodes=128,
    max_new_tokens=96,
)
SMALL = Workload(
    shape=ModelShape(layers=2, width=128, heads=4, vocab=1024, positions=1100, eos_probability=1 / 24),
    rows=8,
    episodes=16,
    max_new_tokens=96,
)


def make_envs(work: Workload, *, rows: int | None = None, device: str = "cpu") -> TextVectorEnv:
    """The vector environment over the workload's prompts."""
    prompts = random_prompts(work.shape, count=work.episodes, length=work.prompt_tokens)
    return TextVectorEnv(
        rows or work.rows,
        prompts=PromptSet(prompts.tolist()),
        tokenizer=word_tokenizer(work.shape),
        max_new_tokens=work.max_new_tokens,
        device=device,
    )


# -- (a), (b): useful tokens per second --------------------


def rollout_rate(envs: TextVectorEnv, policy: DecodingPolicy, episodes: int) -> float:
    """Useful tokens per second of one rollout."""
    begin = time.perf_counter()
    batch = collect(envs, policy, episodes=episodes)
    return int(batch.action_mask.sum()) / (time.perf_counter() - begin)


def generate_rate(model: nn.Module, work: Workload, prompts: Tensor) -> float:
    """Useful tokens per second of ``generate`` over all prompts in batches of ``work.rows``."""
    useful = 0
    begin = time.perf_counter()
    for batch in prompts.split(work.rows):
        output = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=work.max_new_tokens,
            eos_token_id=work.shape.eos_token_id,
            pad_token_id=work.shape.pad_token_id,
        )
        useful += int((output[:, batch.shape[1] :] != work.shape.pad_token_id).sum())
    return useful / (time.perf_counter() - begin)


def against_generate(work: Workload, *, repeats: int) -> dict[str, Any]:
    """Both sides on one workload: tokens/s of each turn, the best of each, and their ratio."""
    model = language_model(work.shape)
    envs, policy = make_envs(work), DecodingPolicy(model)
    prompts = random_prompts(work.shape, count=work.episodes, length=work.prompt_tokens)
    turns = interleave(
        {
            "textenv": lambda: rollout_rate(envs, policy, work.episodes),
            "generate": lambda: generate_rate(model, work, prompts),
        },
        repeats=repeats,
    )
    best = {name: max(rates) for name, rates in turns.items()}
    return {"ratio": best["textenv"] / best["generate"], "tokens_s": best, "turns": turns}


# -- (c): the environment's share of the time --------------------


class Stopwatch:
    """Adds up the time spent inside some methods of an object."""

    def __init__(self, target: Any, *methods: str) -> None:
        self.total = 0.0
        for method in methods:
            setattr(target, method, self._timed(getattr(target, method)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.total += time.perf_counter() - begin

        return timed


def env_share(work: Workload, *, repeats: int) -> dict[str, Any]:
    """Time inside ``reset`` and ``step`` (no reward terms here) over that of the loop; the smallest of n."""
    model = language_model(work.shape)
    envs, policy = make_envs(work), DecodingPolicy(model)
    collect(envs, policy, episodes=work.rows)
    inside = Stopwatch(envs, "reset", "step")
    acting = Stopwatch(policy, "act")
    shares, act_shares = [], []
    for _ in range(repeats):
        inside.total = acting.total = 0.0
        total = seconds(lambda: collect(envs, policy, episodes=work.episodes))
        shares.append(inside.total / total)
        act_shares.append(acting.total / total)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "share": min(shares),
        "policy_share": max(act_shares),
        "parameters_m": parameters / 1e6,
        "rows": work.rows,
    }


# -- (d): scaling --------------------


def measure(work: Workload, *, repeats: int) -> dict[str, Any]:
    """Time and memory of rollouts in a fresh process: best of n, peak memory above that of its imports."""
    worker = Worker(sys.executable, "benchmarks.rollout_worker", asdict(work))
    try:
        turns = [worker.run() for _ in range(repeats + 1)][1:]
    finally:
        worker.close()
    best = min(turns, key=lambda turn: turn["seconds"] / turn["tokens"])
    return {
        "num_envs": work.rows,
        "new_tokens": work.max_new_tokens,
        "tokens": best["tokens"],
        "seconds": best["seconds"],
        "tokens_s": best["tokens"] / best["seconds"],
        "memory_mb": best["peak_mb"],
    }


def scaling(
    work: Workload, *, num_envs: tuple[int, ...], lengths: tuple[int, ...], repeats: int
) -> dict[str, list[Any]]:
    """Time and memory as num_envs grows (geometric lengths), and as a fixed response length does (8 rows)."""
    endless = replace(work, shape=replace(work.shape, eos_probability=0.0), rows=8, episodes=8)
    return {
        "num_envs": [
            measure(replace(work, rows=n, episodes=max(2 * n, 16)), repeats=repeats) for n in num_envs
        ],
        "length": [measure(replace(endless, max_new_tokens=n), repeats=repeats) for n in lengths],
    }


# -- on a GPU --------------------


def memory_bandwidth() -> float:
    """Bytes per second of the GPU's memory: a large copy, read and written."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(8))


@torch.no_grad()
def decode_rate(
    model: nn.Module, work: Workload, *, cuda_graphs: bool, steps: int, repeats: int
) -> tuple[float, float]:
    """Decode steps of a full batch: (tokens/s, bytes read per step at least: weights, keys and values)."""
    decoder = Decoder(model, work.rows, work.prompt_tokens + steps + 1, cuda_graphs=cuda_graphs)
    rows = torch.arange(work.rows, device="cuda")
    prompts = random_prompts(work.shape, count=work.rows, length=work.prompt_tokens).cuda()
    lengths = torch.full((work.rows,), work.prompt_tokens, device="cuda")

    def play() -> None:
        decoder.release(rows)
        decoder.prefill(rows, prompts, lengths)
        tokens, live = prompts[:, 0], decoder.rows  # the decoder's own tensor spares it a look at the device
        for _ in range(steps):
            tokens = decoder.decode(live, tokens).logits.argmax(-1)

    play()
    best = min(seconds(play) for _ in range(repeats))
    width = next(iter(model.parameters())).element_size()
    weights = sum(p.numel() for p in model.parameters()) * width
    cached = 2 * work.shape.layers * work.shape.width * work.rows * (work.prompt_tokens + steps / 2) * width
    return work.rows * steps / best, weights + cached


def on_gpu(*, repeats: int) -> dict[str, Any]:
    """Decode tokens/s with and without CUDA graphs, and the share of the memory-bandwidth limit."""
    bandwidth = memory_bandwidth()
    result: dict[str, Any] = {"bandwidth_gb_s": bandwidth / 1e9, "cases": []}
    gpt2 = ModelShape(layers=12, width=768, heads=12, vocab=50_257, positions=1024)
    for rows in (1, 32, 256):
        work = Workload(shape=gpt2, rows=rows, episodes=rows, max_new_tokens=256)
        model = language_model(work.shape).to("cuda", torch.bfloat16)
        case: dict[str, Any] = {"rows": rows}
        for name, graphs in (("graphs", True), ("eager", False)):
            rate, needed = decode_rate(model, work, cuda_graphs=graphs, steps=255, repeats=repeats)
            case[name] = {"tokens_s": rate, "bandwidth_share": rate / rows * needed / bandwidth}
        result["cases"].append(case)
    return result


# -- the report --------------------


def report(figures: dict[str, Any]) -> None:
    """Print the figures as tables."""
    rows = [
        (title, case["tokens_s"]["textenv"], case["tokens_s"]["generate"], case["ratio"])
        for title, case in (
            ("geometric lengths, mean 24, cap 96", figures["variable_length"]),
            ("fixed 64 tokens", figures["fixed_length"]),
        )
    ]
    print_table(
        "Useful tokens/s, GPT-2 4x256, vocabulary 5,000, 32 rows, 256 prompts",
        ("responses", "textenv", "generate", "ratio"),
        rows,
        "one thread, interleaved, best of n",
    )
    share = figures["env_share_details"]
    print_table(
        f"The environment's share of the loop, {share['parameters_m']:.0f}M parameters, {share['rows']} rows",
        ("part", "share"),
        [("step and reset", f"{share['share']:.2%}"), ("policy.act", f"{share['policy_share']:.2%}")],
    )
    for key, label in (("num_envs", "rows"), ("length", "response tokens, 8 rows")):
        column = "num_envs" if key == "num_envs" else "new_tokens"
        print_table(
            f"Scaling with {label}, GPT-2 2x128, vocabulary 1,024",
            (label, "tokens", "seconds", "tokens/s", "peak MB"),
            [
                (c[column], c["tokens"], c["seconds"], c["tokens_s"], c["memory_mb"])
                for c in figures["scaling"][key]
            ],
        )
    if "gpu" in figures:
        print_table(
            f"Decode on {torch.cuda.get_device_name()}, GPT-2 12x768 in bfloat16, "
            f"memory {figures['gpu']['bandwidth_gb_s']:,.0f} GB/s",
            ("rows", "graphs tokens/s", "share of limit", "eager tokens/s", "share of limit"),
            [
                (c["rows"], *(c[m][k] for m in ("graphs", "eager") for k in ("tokens_s", "bandwidth_share")))
                for c in figures["gpu"]["cases"]
            ],
        )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    options = arguments("Rollout speed against transformers generate.").parse_args()
    one_thread()
    repeats = 2 if options.quick else 5
    share = env_share(GPT2_45M, repeats=1 if options.quick else 3)
    figures: dict[str, Any] = {
        "variable_length": against_generate(VARIABLE, repeats=repeats),
        "fixed_length": against_generate(FIXED, repeats=repeats),
        "env_share": share["share"],
        "env_share_details": share,
        "scaling": scaling(SMALL, num_envs=(1, 8, 64, 512), lengths=(64, 256, 1024), repeats=2),
    }
    if torch.cuda.is_available():
        figures["gpu"] = on_gpu(repeats=repeats)
    report(figures)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
