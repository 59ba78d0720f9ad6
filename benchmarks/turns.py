"""Episodes of several turns: ``python -m benchmarks.turns [--json FILE] [--quick]``.

(a) The cost of a reply of 16 tokens: the cached row is extended, prefilled again, or fed one forced token per
step. (b) Tokens per second of 64 rows with slow tools, against a barrier per turn: all rows end their turn,
then all wait for the slowest tool. The latency of a tool is given in decode steps of all rows, and slept.
(c) The environment's share of the loop. One thread, contenders take turns, best of n.

Shape letters: N environment rows.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.common import arguments, interleave, one_thread, print_table, seconds, write_json
from benchmarks.models import ModelShape, language_model, random_prompts, word_tokenizer
from benchmarks.rollout import GPT2_4X256, GPT2_45M, Stopwatch, Workload
from textenv.envs.vector_env import TextVectorEnv
from textenv.generation.decoder import Decoder
from textenv.generation.policy import DecodingPolicy
from textenv.partners import Partner, Reply
from textenv.prompts.prompt_set import PromptSet
from textenv.rollout import collect
from textenv.utils.hashing import hash_key_array

REPLY_TOKENS = 16
TURNS = 4
SHORTEST, LONGEST = 8, 40
"""Tokens of a turn, uniform between these."""
REPLY = " ".join(f"w{i}" for i in range(REPLY_TOKENS))
SHAPE = replace(GPT2_4X256, positions=512)


class Answering(Partner):
    """Replies without delay."""

    max_reply_tokens = REPLY_TOKENS

    def begin(self, rng: np.random.Generator) -> None:
        """Reset the count of turns."""
        self.rng, self.turns = rng, 0

    def reply(self, text: str) -> Reply:
        """The reply; done after the last turn."""
        self.turns += 1
        return Reply(REPLY, reward=0.1, done=self.turns == TURNS)


class Tool(Answering):
    """Replies after a latency of ``mean`` seconds, exponential or constant."""

    def __init__(self, mean: float, constant: bool = False) -> None:
        self.mean, self.constant = mean, constant

    def latency(self) -> float:
        """Latency of the next call in seconds."""
        return self.mean if self.constant else float(self.rng.exponential(self.mean))

    async def reply(self, text: str) -> Reply:  # type: ignore[override]
        """The reply, after the latency of this call."""
        await asyncio.sleep(self.latency())
        return super().reply(text)


class BarrierTool(Tool):
    """Replies when all rows have ended their turn and the slowest of their calls is done."""

    rows: ClassVar[int] = 0
    waiting: ClassVar[list[tuple[float, asyncio.Future[None]]]] = []

    async def reply(self, text: str) -> Reply:
        """The reply, once the calls of all rows are done."""
        waiting, ready = BarrierTool.waiting, asyncio.get_running_loop().create_future()
        waiting.append((self.latency(), ready))
        if len(waiting) == BarrierTool.rows:
            everyone, BarrierTool.waiting = [*waiting], []
            await asyncio.sleep(max(latency for latency, _ in everyone))
            for _, other in everyone:
                other.set_result(None)
        await ready
        return Answering.reply(self, text)


class TurnEnds:
    """A policy whose turns have given lengths: it puts a stop token at the end of each.

    Args:
        policy: chooses the other tokens.
        stop: id of the stop token.
    """

    def __init__(self, policy: DecodingPolicy, stop: int) -> None:
        self.policy, self.stop = policy, stop

    def attach(self, env: Any) -> None:
        """Attach the policy."""
        self.policy.attach(env)

    def act(self, obs: dict[str, Any], key: Any = None, *, active: Any = None) -> tuple[Any, dict[str, Any]]:
        """The policy's tokens, or the stop token in the last step of a turn."""
        actions, info = self.policy.act(obs, key, active=active)
        start, length = obs["prompt_length"], obs["attention_mask"].sum(-1)
        target = SHORTEST + torch.from_numpy(
            hash_key_array(start.numpy(), obs["input_ids"][:, 0].numpy()).astype(np.int64)
        ) % (LONGEST - SHORTEST + 1)
        return torch.where(length - start >= target - 1, self.stop, actions), info


def make_envs(shape: ModelShape, rows: int, episodes: int, partner: Any) -> TextVectorEnv:
    """The environment over random prompts of 16 tokens."""
    return TextVectorEnv(
        rows,
        prompts=PromptSet(random_prompts(shape, count=episodes, length=16).tolist()),
        tokenizer=word_tokenizer(shape),
        max_new_tokens=TURNS * LONGEST,
        partner=partner,
        max_turns=TURNS,
        max_turn_tokens=LONGEST,
        max_length=16 + TURNS * (LONGEST + REPLY_TOKENS),
        suppressed_tokens=[shape.pad_token_id],
    )


# -- (a) the cost of a reply --------------------


def reply_cost(context: int, rows: int, *, repeats: int) -> dict[str, Any]:
    """Seconds to cache a reply in ``rows`` rows of ``context`` tokens, in three ways."""
    shape = replace(SHAPE, positions=1024)
    model = language_model(shape)
    every = torch.arange(rows)
    tokens = random_prompts(shape, count=rows, length=context + REPLY_TOKENS)
    reply = tokens[:, context:]
    decoder = Decoder(model, rows, context + REPLY_TOKENS + 2)
    counts = torch.full((rows,), REPLY_TOKENS)

    def start() -> None:
        decoder.invalidate()
        decoder.prefill(every, tokens[:, :context], torch.full((rows,), context))

    def extend() -> float:
        start()
        return seconds(lambda: decoder.extend(every, reply, counts))

    def prefill() -> float:
        start()
        return seconds(lambda: decoder.prefill(every, tokens, counts + context))

    def forced() -> float:
        start()

        def steps() -> None:
            for column in range(REPLY_TOKENS):
                decoder.decode(decoder.rows, reply[:, column])

        return seconds(steps)

    turns = interleave({"extend": extend, "prefill": prefill, "forced": forced}, repeats=repeats)
    best = {name: min(values) for name, values in turns.items()}
    return {
        "context": context,
        "rows": rows,
        "seconds": best,
        "of_prefill": best["extend"] / best["prefill"],
        "of_forced": best["extend"] / best["forced"],
    }


# -- (b) slow tools --------------------


def step_seconds(rows: int) -> float:
    """Seconds of one decode step of all rows, without tools."""
    model = language_model(SHAPE)
    envs = make_envs(SHAPE, rows, rows, Answering)
    policy = TurnEnds(DecodingPolicy(model), SHAPE.eos_token_id)
    collect(envs, policy, rows)
    spent = seconds(lambda: collect(envs, policy, 2 * rows))
    return spent / (2 * TURNS * (SHORTEST + LONGEST) / 2)


def tool_rate(partner: type[Tool], mean: float, rows: int, episodes: int, **options: Any) -> float:
    """Tokens per second of ``episodes`` episodes with a tool of this mean latency in seconds."""
    BarrierTool.rows, BarrierTool.waiting = rows, []
    envs = make_envs(SHAPE, rows, episodes, partner(mean, **options))
    policy = TurnEnds(DecodingPolicy(language_model(SHAPE)), SHAPE.eos_token_id)
    policy.attach(envs)
    begin = time.perf_counter()
    batch = collect(envs, policy, episodes, seed=0)
    spent = time.perf_counter() - begin
    envs.close()
    return int(batch.action_mask.sum()) / spent


def slow_tools(
    steps: int, constant: bool, rows: int, episodes: int, step: float, *, repeats: int
) -> dict[str, Any]:
    """Tokens per second if each row waits only for its own call, and with a barrier per turn."""
    options = {"constant": constant}
    turns = interleave(
        {
            "waiting rows": lambda: tool_rate(Tool, steps * step, rows, episodes, **options),
            "barrier": lambda: tool_rate(BarrierTool, steps * step, rows, episodes, **options),
        },
        repeats=repeats,
        warmup=0,
    )
    best = {name: max(values) for name, values in turns.items()}
    mean = (SHORTEST + LONGEST) / 2
    worst = steps if constant else steps * float(np.sum(1 / np.arange(1, rows + 1)))
    return {
        "latency": "constant" if constant else "exponential",
        "steps": steps,
        "tokens_s": best,
        "ratio": best["waiting rows"] / best["barrier"],
        # If a step costs the same however many rows act: a turn of mean length and mean latency, against the
        # longest turn and the longest latency of all rows.
        "bound": (LONGEST + worst) / (mean + steps),
    }


# -- (c) the environment's share --------------------


def turn_share(work: Workload, *, repeats: int) -> dict[str, Any]:
    """Time inside ``reset`` and ``step`` with a partner that replies at once, over that of the loop."""
    shape = replace(work.shape, eos_probability=0.0, positions=512)
    model = language_model(shape)
    envs = make_envs(shape, work.rows, work.rows, Answering)
    policy = TurnEnds(DecodingPolicy(model), shape.eos_token_id)
    collect(envs, policy, work.rows)
    inside = Stopwatch(envs, "reset", "step")
    shares = []
    for _ in range(repeats):
        inside.total = 0.0
        total = seconds(lambda: collect(envs, policy, work.rows))
        shares.append(inside.total / total)
    return {
        "share": min(shares),
        "rows": work.rows,
        "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
    }


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    print_table(
        f"A reply of {REPLY_TOKENS} tokens, GPT-2 4x256, milliseconds",
        (
            "context",
            "rows",
            "extend",
            "prefill again",
            "forced tokens",
            "extend / prefill",
            "extend / forced",
        ),
        [
            (
                c["context"],
                c["rows"],
                *(1000 * s for s in c["seconds"].values()),
                c["of_prefill"],
                c["of_forced"],
            )
            for c in figures["reply"]
        ],
    )
    print_table(
        f"Tokens/s with slow tools, {figures['rows']} rows, turns of {SHORTEST} to {LONGEST} tokens",
        ("latency", "mean steps", "waiting rows", "barrier per turn", "ratio", "bound"),
        [
            (c["latency"], c["steps"], *c["tokens_s"].values(), c["ratio"], c["bound"])
            for c in figures["tools"]
        ],
        f"one step of all rows takes {1000 * figures['step_seconds']:.1f} ms",
    )
    share = figures["share"]
    print_table(
        f"The environment's share of the loop, {share['parameters_m']:.0f}M parameters, {share['rows']} rows",
        ("part", "share"),
        [("step and reset, with replies", f"{share['share']:.2%}")],
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    options = arguments("Episodes of several turns.").parse_args()
    one_thread()
    repeats, rows = (1, 16) if options.quick else (3, 64)
    step = step_seconds(rows)
    cases = [(20, False), (120, False), (20, True), (120, True)]
    figures: dict[str, Any] = {
        "rows": rows,
        "step_seconds": step,
        "reply": [
            reply_cost(context, n, repeats=2 if options.quick else 7)
            for context in (128, 512)
            for n in (1, 8)
        ],
        "tools": [
            slow_tools(steps, constant, rows, 2 * rows, step, repeats=repeats) for steps, constant in cases
        ],
        "share": turn_share(GPT2_45M, repeats=1 if options.quick else 3),
    }
    report(figures)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
