"""Measuring a reward model on pairs and rated texts: those of its training's evaluation, or of a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from textenv.agents.data.ratings import RewardBatch
from textenv.agents.data.reward_records import as_reward_batch
from textenv.agents.evaluation.reward_model import (
    RewardEvaluation,
    pair_metrics,
    rating_metrics,
    reliability,
)
from textenv.agents.policies.reward_scorer import Scorer
from textenv.rewards.retokenize import named_model
from textenv.rewards.reward_model import SETTINGS

if TYPE_CHECKING:
    import torch

SAMPLES = 8
"""Texts in an evaluation's table."""


def evaluate_reward_model(
    model: Any,
    dataset: Any,
    *,
    split: str | None = None,
    device: str | torch.device | None = None,
    max_tokens: int | None = None,
    **options: Any,
) -> RewardEvaluation:
    """Measure a reward model on held-out pairs or rated texts, which it reads as in its training.

    Args:
        model: a ``Scorer``; the folder of a run of the agent "reward-model", of its checkpoint, of a
            pipeline, or of a sequence classifier with one label; or a hub id of such.
        dataset: pairs, rated texts, or ``{"pairs": ..., "ratings": ...}``; see
            ``textenv.agents.data.ratings.as_reward_batch``.
        split: which split of a folder, a ``DatasetDict`` or a hub id; None is "train" or the only one.
        device: where to compute; None is the CPU for what is named.
        max_tokens: padded tokens of one pass; None is the scorer's.
        options: ``bins`` of the calibration error.

    Raises:
        ValueError: if the model is no reward model, or the data have other columns.

    Example:
        >>> from textenv.agents import evaluate_reward_model
        >>> found = evaluate_reward_model("runs/rm", "held_out.jsonl")  # doctest: +SKIP
        >>> found.metrics["accuracy"], found.metrics["accuracy/low"]  # doctest: +SKIP
    """
    scorer = model if isinstance(model, Scorer) else load_scorer(model, device=device)
    if max_tokens is not None:
        scorer.max_tokens = max_tokens
    if split is not None:
        from textenv.data.loading import load_columns

        dataset = load_columns(dataset, split=split)
    batch = as_reward_batch(
        dataset, scorer.tokenizer, max_length=scorer.longest, append_eos=scorer.append_eos
    )
    if batch.template is not None and batch.template != scorer.template:
        raise ValueError(
            f"the reward model reads texts as {scorer.template!r}, but the data are to be read as "
            f"{batch.template!r}; give {'messages' if scorer.template == 'chat' else 'texts'}"
        )
    return measure(scorer, batch, **options)


def load_scorer(model: str | os.PathLike[str], *, device: Any = None) -> Scorer:
    """The reward model in a folder, or of a hub id.

    Raises:
        ValueError: if it is a model of another kind.
    """
    from textenv.agents.checkpointing.needs import check_model

    check_model("model", os.fspath(model), scores=True)
    name = named_model(model, scores=True)
    if (Path(name) / SETTINGS).is_file():
        return Scorer.load(name, device=device)
    return Scorer(name, device=device)


def measure(scorer: Scorer, batch: RewardBatch, **options: Any) -> RewardEvaluation:
    """Score pairs and rated texts, and measure the scores.

    Args:
        scorer: the reward model.
        batch: the data, in its tokens.
        options: ``bins`` of the calibration error.
    """
    started = time.perf_counter()
    by_head = scorer.score(batch.episodes)
    scores = by_head.mean(-1)
    metrics = {"score/mean": float(scores.mean()), "score/std": float(scores.std(correction=0))}
    if scorer.heads > 1:
        metrics["score/disagreement"] = float(by_head.std(-1).mean())
    chosen, rejected, rated = scores.split([batch.pairs, batch.pairs, batch.rated])
    table = []
    if batch.pairs:
        metrics |= pair_metrics(chosen - rejected, batch.label.cpu(), **options)
        table = reliability(chosen - rejected, batch.label.cpu(), **options)
    if batch.rated:
        metrics |= rating_metrics(rated, batch.ratings.cpu())
    return RewardEvaluation(
        metrics=metrics,
        reliability=table,
        samples=_samples(scorer, batch, scores),
        seconds=time.perf_counter() - started,
    )


def _samples(scorer: Scorer, batch: RewardBatch, scores: Tensor) -> list[dict[str, Any]]:
    """The first texts: of each pair the chosen and the rejected one, or the rated ones."""
    tokenizer = scorer.tokenizer
    if tokenizer is None:
        return []
    if batch.pairs:
        rows = [row for i in range(min(SAMPLES // 2, batch.pairs)) for row in (i, batch.pairs + i)]
    else:
        rows = list(range(min(SAMPLES, batch.rated)))
    part = batch.episodes.select(rows)
    ids = [row[:n] for row, n in zip(part.input_ids.tolist(), part.lengths.tolist(), strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    sides = [("chosen", "rejected")[row >= batch.pairs] if batch.pairs else "rated" for row in rows]
    return [
        {"text": text, "side": side, "score": float(scores[row])}
        for text, side, row in zip(texts, sides, rows, strict=True)
    ]
