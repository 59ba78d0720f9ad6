"""Compare a policy before and after training: same prompts and sampling noise, scored by a held-out judge."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from textenv.agents.evaluation.evaluator import evaluate
from textenv.agents.evaluation.metrics.text import distinct_n, repetition_n
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward
from textenv.scoring import reward_wrappers
from textenv.utils.deprecation import warn_renamed
from textenv.utils.files import write_text
from textenv.utils.json_files import json_values, write_json
from textenv.utils.terminal import text_table

LABELS = {
    "reward": "reward (trained on)",
    "judge": "judge (never trained on)",
    "kl": "KL from before (nats per text)",
    "repetition": "repeated trigrams",
    "distinct_2": "distinct bigrams",
    "length": "tokens per text",
    "eos_rate": "fraction that ends with EOS",
}
"""Figures of a comparison and how a table calls them."""


@dataclass(kw_only=True)
class BeforeAfter:
    """Figures of two policies on the same prompts."""

    before: dict[str, float]
    """Figure -> value before, see ``LABELS``."""
    after: dict[str, float]
    """Metrics after the training."""
    human_reference: dict[str, float] = field(default_factory=dict)
    """The same metrics of human texts; empty if there are none."""
    judge_gain: float = math.nan
    """Mean difference of the judge's scores, after less before, on the same prompts and noise."""
    judge_gain_error: float = math.nan
    """Its standard error."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Prompt, what followed before and after, and their scores."""

    @property
    def people(self) -> dict[str, float]:
        """Deprecated: ``human_reference``."""
        warn_renamed("people", "human_reference")
        return self.human_reference

    def table(self) -> Table:
        """Figures before, after and of human texts, for ``rich.print``."""
        rows = [
            [title, *(side.get(name, math.nan) for side in (self.before, self.after, self.human_reference))]
            for name, title in LABELS.items()
        ]
        return text_table(["", "before", "after", "human"], rows, title="before and after")

    def sample_table(self, count: int = 6) -> Table:
        """The first prompts with both texts, for ``rich.print``."""
        columns = ["prompt", "before", "after", "judge before", "judge after"]
        rows = [[sample[name.replace(" ", "_")] for name in columns] for sample in self.samples[:count]]
        return text_table(columns, rows, title="samples", max_chars=160)

    def save(self, run_dir: Path, **extra: Any) -> None:
        """Write ``results.json``, with ``extra`` JSON values, and ``tables/samples.jsonl``."""
        found = {
            "before": self.before,
            "after": self.after,
            "people": self.human_reference,
            "judge_gain": self.judge_gain,
            "judge_gain_error": self.judge_gain_error,
            **extra,
        }
        write_json(run_dir / "results.json", found)
        rows = "".join(json.dumps(json_values(row)) + "\n" for row in self.samples)
        write_text(run_dir / "tables" / "samples.jsonl", rows)

    @staticmethod
    def repetition(episodes: EpisodeBatch) -> float:
        """Mean fraction of repeated trigrams per response."""
        ids = _responses(episodes)
        return sum(map(repetition_n, ids)) / len(ids)


def compare(
    *,
    before: str,
    after: str,
    envs: Any,
    judge: Any = None,
    episodes: int = 256,
    seed: int = 77_777,
    human_reference: EpisodeBatch | None = None,
    people: EpisodeBatch | None = None,
) -> BeforeAfter:
    """Let two policies write on the same prompts with the same noise, and measure both.

    Args:
        before: folder or hub id of the policy to compare with; KL is measured against it.
        after: folder or hub id of the other one.
        envs: a native vector environment with the rewards.
        judge: a reward spec, or None.
        episodes: texts of each.
        seed: of prompts and noise.
        human_reference: texts that humans wrote, in the policy's tokens.
        people: deprecated name of ``human_reference``.
    """
    if people is not None:
        warn_renamed("people", "human_reference")
        human_reference = people
    base = envs.unwrapped
    term = None if judge is None else make_reward(judge)
    if term is not None:
        term.bind(base)
    where = {"tokenizer": base.tokenizer, "device": base.device}
    reference = LanguagePolicy(before, **where)
    found, judged, batches = [], [], []
    for folder in (before, after):
        policy = LanguagePolicy(folder, **where)
        metrics = evaluate(policy, envs, episodes, seed=seed, reference=reference)
        batches.append(metrics.episodes)
        judged.append(_judged(term, metrics.episodes))
        found.append(
            {
                "reward": metrics.metrics.get("terms/reward-model", metrics.metrics["return/mean"]),
                "judge": float(judged[-1].mean()),
                "kl": metrics.metrics["objective/kl"],
                "repetition": metrics.metrics["text/repetition"],
                "distinct_2": metrics.metrics["text/distinct_2"],
                "length": metrics.metrics["episode/length"],
                "eos_rate": metrics.metrics["episode/eos_rate"],
            }
        )
    gain = judged[1] - judged[0]
    return BeforeAfter(
        before=found[0],
        after=found[1],
        human_reference={}
        if human_reference is None
        else _human_figures(human_reference, envs, term, episodes),
        judge_gain=float(gain.mean()),
        judge_gain_error=float(gain.std() / len(gain) ** 0.5),
        samples=_samples(batches, judged, base.tokenizer),
    )


def _judged(term: Any, episodes: EpisodeBatch) -> Tensor:
    if term is None:
        return torch.full((len(episodes),), math.nan, dtype=torch.float64)
    with torch.no_grad():
        scores = term.score(episodes)
    return (scores.sum(-1) if scores.dim() == 2 else scores).double()


def _human_figures(texts: EpisodeBatch, envs: Any, term: Any, count: int) -> dict[str, float]:
    """The figures of ``count`` human texts, evenly spaced because data sets may be sorted."""
    batch = texts.select(torch.linspace(0, len(texts) - 1, min(count, len(texts))).round().long())
    wrappers = reward_wrappers(envs)
    named = [wrapper for wrapper in wrappers if wrapper.name == "reward-model"] or wrappers
    rewards = [_judged(wrapper.term, batch) for wrapper in named]
    ids = _responses(batch)
    return {
        "reward": float(sum(rewards, torch.zeros(1)).mean()),
        "judge": float(_judged(term, batch).mean()),
        "repetition": BeforeAfter.repetition(batch),
        "distinct_2": distinct_n(ids, 2),
        "length": float(batch.response_lengths.double().mean()),
        "eos_rate": float(batch.terminated.double().mean()),
    }


def _responses(episodes: EpisodeBatch) -> list[list[int]]:
    rows = zip(episodes.input_ids.cpu(), episodes.action_mask.cpu(), strict=True)
    return [row[mask].tolist() for row, mask in rows]


def _samples(
    batches: Sequence[EpisodeBatch], judged: Sequence[Tensor], tokenizer: Any
) -> list[dict[str, Any]]:
    first, second = batches
    texts = [batch.completion_texts(tokenizer) for batch in batches]
    rewards = [batch.returns.tolist() for batch in batches]
    return [
        {
            "prompt": prompt,
            "before": texts[0][i],
            "after": texts[1][i],
            "reward_before": rewards[0][i],
            "reward_after": rewards[1][i],
            "judge_before": float(judged[0][i]),
            "judge_after": float(judged[1][i]),
        }
        for i, prompt in enumerate(first.prompt_texts(tokenizer))
        if len(second) > i
    ]
