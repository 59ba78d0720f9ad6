"""Evaluation: generate a fixed set of episodes and measure them, without any effect on training.

Prompts and sampling noise are the same every time (episode ids 0..B-1 of one seed), so two evaluations differ
only in the policy. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from textenv.agents.distributed import process_group
from textenv.agents.distributed.data_parallel import gather_episodes, local_only, local_rows, shard_rows
from textenv.agents.evaluation.conversation import conversation_line, conversations
from textenv.agents.evaluation.kl import kl_row
from textenv.agents.evaluation.metrics.registry import Generated
from textenv.agents.evaluation.metrics.suite import MetricSpec, check_metrics, measure
from textenv.agents.evaluation.metrics.text import distinct_n, repetition_n
from textenv.agents.evaluation.turns import turn_metrics
from textenv.agents.loggers.missing_rewards import has_no_rewards
from textenv.envs.rendering import POLICY
from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import ERRORS, STOP_REASON, TIMEOUTS
from textenv.rewards.functions import copied
from textenv.rollout import collect
from textenv.utils.json_files import json_values
from textenv.utils.terminal import number, text_table

EVAL_SEED = 20_001
"""Default seed of evaluations: not a seed that training is likely to use."""

_TURN_COLUMNS = (STOP_REASON, ERRORS, TIMEOUTS)
MetricFunction = Callable[..., Mapping[str, Any]]
"""``fn(prompts, completions, **columns) -> {name: number, or list of B numbers or None}``."""


@dataclass(kw_only=True)
class Evaluation:
    """Result of an evaluation."""

    metrics: dict[str, float]
    """Name -> number.

    ``return/{mean,std,min,max}`` and ``terms/NAME`` (means, nats or reward units per episode);
    ``objective/kl`` and ``objective/kl_per_token`` (nats, k1, response only; with a reference);
    ``objective/entropy`` (nats per token: minus the mean log-prob of what was sampled);
    ``episode/length`` (tokens), ``episode/eos_rate``; ``text/repetition``, ``text/distinct_1``,
    ``text/distinct_2``; ``metric/NAME`` (the user's, and those asked for by name); ``episodes``.
    """
    samples: list[dict[str, Any]] = field(default_factory=list)
    """The episodes with the lowest ids: prompt, completion, return, terms, length, terminated, metrics. Those
    of several turns also have conversation (see ``conversations``), turns, stop_reason, partner_errors and
    partner_timeouts."""
    episodes: EpisodeBatch
    """All B episodes, ordered by episode id."""
    seconds: float = 0.0
    """Wall time."""

    def table(self, *, max_chars: int = 200) -> Table:
        """The samples as a rich table, untrusted text escaped: ``rich.print(evaluation.table())``.

        Returns are left out if there are no rewards.
        """
        columns, rows = self.sample_table()
        title = f"return {number(self.metrics['return/mean'])} over {len(self.episodes)} episodes"
        if has_no_rewards(self.metrics):
            title = f"{len(self.episodes)} episodes"
            place = columns.index("return")
            columns, *rows = [[*cells[:place], *cells[place + 1 :]] for cells in (columns, *rows)]
        return text_table(columns, rows, title=title, max_chars=max_chars)

    def sample_table(self) -> tuple[list[str], list[list[Any]]]:
        """The samples as columns and rows, for ``Logger.log_table``.

        Episodes of several turns have the columns conversation, turns and stop_reason, and counts of failed
        calls if there are any.
        """
        columns = ["prompt", "completion", "return", "length"]
        samples = self.samples
        if samples and "conversation" in samples[0]:
            failed = [name for name in (ERRORS, TIMEOUTS) if any(sample[name] for sample in samples)]
            columns = ["prompt", "conversation", "return", "turns", "length", STOP_REASON, *failed]
            samples = [{**s, "conversation": conversation_line(s["conversation"])} for s in samples]
        terms = list(self.samples[0]["terms"]) if self.samples else []
        metrics = list(self.samples[0]["metrics"]) if self.samples else []
        rows = [
            [
                *(sample[name] for name in columns),
                *(sample["terms"][name] for name in terms),
                *(sample["metrics"][name] for name in metrics),
            ]
            for sample in samples
        ]
        return [*columns, *terms, *(f"metric/{name}" for name in metrics)], rows

    def to_dict(self) -> dict[str, Any]:
        """Metrics, samples and time as JSON values; non-finite numbers are None."""
        return {
            "metrics": json_values(self.metrics),
            "samples": self.samples,
            "seconds": self.seconds,
        }


def evaluate(
    policy: Any,
    envs: Any,
    episodes: int,
    *,
    metric_fn: MetricFunction | None = None,
    metrics: Sequence[MetricSpec] = (),
    seed: int = EVAL_SEED,
    samples: int = 8,
    reference: Any = None,
    max_tokens: int = 16384,
    keep: Callable[[EpisodeBatch], EpisodeBatch] | None = None,
) -> Evaluation:
    """Generate ``episodes`` episodes and measure them; nothing is trained.

    The policy is bound to ``envs`` during generation, because KL penalties need its reference. The state of
    the reward terms and the random states of Python, NumPy and torch do not change. ``envs`` restarts at
    episode id 0, so use a separate environment for evaluation.

    Args:
        policy: has ``act``, or is a plain callable ``(obs, info) -> actions``; for a KL it has ``log_prob``,
            too.
        envs: a native vector environment, not the one used for training.
        episodes: B, number of episodes: always the episode ids 0..B-1 of ``seed``.
        metric_fn: further metrics, ``fn(prompts, completions, **columns)``; it may leave out columns that it
            does not name. A list has one value per episode (None: not applicable) and is averaged.
        metrics: names of ``metrics.registry.METRICS``, such as "rouge", or [name, {option: value}].
        seed: of prompts and sampling noise.
        samples: how many episodes to keep as text.
        reference: what to measure the KL against; has ``log_prob(episodes) -> (B, L)``. None measures no KL.
            Perplexities are measured with it, too.
        max_tokens: padded tokens of one forward pass.
        keep: selects the episodes to measure from the generated ones; None measures all.

    Raises:
        ValueError: if a count is out of range, a metric unknown, or ``metric_fn`` gives the wrong number of
            values.
        TypeError: if ``metric_fn`` gives no dictionary or values that are no numbers.
    """
    if samples < 0:
        raise ValueError(f"samples must be >= 0, got {samples}")
    check_metrics(metrics)
    if metric_fn is not None and not callable(metric_fn):
        raise TypeError(f"metric_fn must be a function, got {metric_fn!r}")
    if reference is not None and not hasattr(reference, "log_prob"):
        raise TypeError(f"reference must be a policy with log_prob(), got {reference!r}")
    started = time.perf_counter()
    base = getattr(envs, "unwrapped", envs)
    if not isinstance(base, TextVectorEnv):
        raise TypeError(f"evaluate needs a native vector environment, got {type(base).__name__}")
    with _random_state_kept(base.device), _bound(policy, base):
        with process_group.collective("an evaluation"):
            own = collect(envs, policy, episodes, seed=seed, update_terms=False, **process_group.place())
        batch = gather_episodes(own)
        batch = batch if keep is None else keep(batch)
        numbers = _episode_metrics(batch)
        if reference is not None:
            numbers.update(_kl_metrics(policy, reference, batch, max_tokens))
        texts = batch.texts(base.tokenizer)
        prompts, completions = [prompt for prompt, _ in texts], [completion for _, completion in texts]
        columns: dict[str, list[float | None]] = {}
        if metric_fn is not None or metrics:
            with process_group.collective("metrics"), local_only():
                found: tuple[dict[str, float], dict[str, Any]] = {}, {}
                if process_group.is_main():
                    given = Generated(
                        batch, prompts, completions, base.tokenizer, policy, reference, max_tokens
                    )
                    found = measure(metrics, given)
                    if metric_fn is not None:
                        means, by_episode = user_metrics(metric_fn, prompts, completions, batch.extras)
                        found = {**found[0], **means}, {**found[1], **by_episode}
            means, columns = process_group.broadcast(found)
            numbers.update({f"metric/{name}": value for name, value in means.items()})
    return Evaluation(
        metrics=numbers,
        samples=_samples(batch, prompts, completions, columns, min(samples, len(batch))),
        episodes=batch,
        seconds=time.perf_counter() - started,
    )


def user_metrics(
    metric_fn: MetricFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, float], dict[str, list[float | None]]]:
    """Call a user's metric function and check its result.

    Args:
        metric_fn: see ``evaluate``.
        prompts: B texts.
        completions: B texts.
        columns: name -> B values.

    Returns:
        name -> mean (NaN if no episode has a value), and name -> B values for those that came as a list.

    Raises:
        ValueError: if a list does not have B values.
        TypeError: if it gives no dictionary, or values that are no numbers.
    """
    label = f"metric_fn {getattr(metric_fn, '__name__', type(metric_fn).__name__)!r}"
    accepted = inspect.signature(metric_fn).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        columns = {name: values for name, values in columns.items() if name in accepted}
    try:
        given = metric_fn(list(prompts), list(completions), **copied(columns))
    except Exception as error:
        error.add_note(f"raised by {label} on {len(prompts)} episodes")
        raise
    if not isinstance(given, Mapping):
        raise TypeError(f"{label} must return a dictionary, got {type(given).__name__}")
    means: dict[str, float] = {}
    by_episode: dict[str, list[float | None]] = {}
    for name, values in given.items():
        values = values.tolist() if isinstance(values, Tensor | np.ndarray | np.generic) else values
        if isinstance(values, Sequence) and not isinstance(values, str):
            if len(values) != len(prompts):
                raise ValueError(f"{label}: {name!r} must have {len(prompts)} values, got {len(values)}")
            by_episode[name] = [None if value is None else _real(label, name, value) for value in values]
            applicable = [value for value in by_episode[name] if value is not None]
            means[name] = sum(applicable) / len(applicable) if applicable else math.nan
        else:
            means[name] = _real(label, name, values)
    return means, by_episode


def _real(label: str, name: str, value: Any) -> float:
    value = value.item() if isinstance(value, Tensor | np.generic) else value
    if not isinstance(value, int | float):
        raise TypeError(f"{label}: {name!r} must hold numbers, got {value!r}")
    return float(value)


def _episode_metrics(batch: EpisodeBatch) -> dict[str, float]:
    """Metrics that need only the episodes."""
    returns = batch.returns.double()
    rows = zip(batch.input_ids.cpu(), batch.action_mask.cpu(), strict=True)
    ids = [row[mask].tolist() for row, mask in rows]
    metrics = {
        "return/mean": float(returns.mean()),
        "return/std": float(returns.std(correction=0)),
        "return/min": float(returns.min()),
        "return/max": float(returns.max()),
        **{f"terms/{name}": float(v.double().sum(-1).mean()) for name, v in batch.reward_terms.items()},
        "episode/length": float(batch.response_lengths.double().mean()),
        "episode/eos_rate": float(batch.terminated.double().mean()),
        "text/repetition": sum(repetition_n(tokens) for tokens in ids) / len(ids),
        "text/distinct_1": distinct_n(ids, 1),
        "text/distinct_2": distinct_n(ids, 2),
        **turn_metrics(batch),
        "episodes": float(len(batch)),
    }
    if batch.log_probs is not None:
        metrics["objective/entropy"] = -float(batch.log_probs[batch.action_mask].double().mean())
    return metrics


@torch.no_grad()
def _kl_metrics(policy: Any, reference: Any, batch: EpisodeBatch, max_tokens: int) -> dict[str, float]:
    """k1 estimate of the KL over the response: per episode, and per token over all tokens."""
    local = local_rows(shard_rows(batch))
    total = 0.0
    for _, part in (batch if local is None else local.own).token_budget_batches(max_tokens):
        difference = policy.log_prob(part) - reference.log_prob(part)
        total += float(difference[part.action_mask].double().sum())
    if local is not None:
        (total,) = process_group.all_reduce_sum(total)
    return kl_row(total, episodes=len(batch), tokens=int(batch.action_mask.sum()))


def _samples(
    batch: EpisodeBatch,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[float | None]],
    count: int,
) -> list[dict[str, Any]]:
    returns, lengths = batch.returns.tolist(), batch.response_lengths.tolist()
    terms = {name: values.sum(-1).tolist() for name, values in batch.reward_terms.items()}
    talks = conversations(batch.select(range(count))) if count else None
    return [
        {
            "prompt": prompts[i],
            "completion": completions[i],
            "return": returns[i],
            "terms": {name: values[i] for name, values in terms.items()},
            "length": lengths[i],
            "terminated": bool(batch.terminated[i]),
            "metrics": {name: values[i] for name, values in columns.items()},
            **({} if talks is None else _turn_sample(batch, i, talks[i])),
        }
        for i in range(count)
    ]


def _turn_sample(batch: EpisodeBatch, i: int, conversation: list[dict[str, Any]]) -> dict[str, Any]:
    turns = sum(said["role"] == POLICY for said in conversation)
    columns = {name: batch.extras[name][i] for name in _TURN_COLUMNS}
    return {"conversation": conversation, "turns": turns, **columns}


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Restore the global random states: rewards and metrics may draw from them without effect on training."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _bound(policy: Any, envs: TextVectorEnv) -> Iterator[None]:
    """Bind the policy within the block."""
    before = envs.policy
    envs.bind(policy)
    try:
        yield
    finally:
        envs.bind(before)
