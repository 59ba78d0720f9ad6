"""Metrics without references: diversity, length, and how usual the texts are to a language model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from textenv.agents.evaluation.metrics.perplexity import perplexity
from textenv.agents.evaluation.metrics.registry import Found, Generated, Units, register_metric
from textenv.agents.evaluation.metrics.text import distinct_n, entropy_n, msttr
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.extras import import_extra


@register_metric("distinct")
def distinct(generated: Generated, n: Sequence[int] = (1, 2, 3), by: Units = "tokens") -> Found:
    """Distinct n-grams over all n-grams (Li et al. 2016). It falls with the number of texts."""
    units = generated.units(by)
    return {f"distinct_{size}": distinct_n(units, size) for size in n}


@register_metric("entropy")
def ngram_entropy(generated: Generated, n: Sequence[int] = (1, 2, 3), by: Units = "tokens") -> Found:
    """Entropy in nats of the distribution of n-grams over all texts."""
    units = generated.units(by)
    return {f"entropy_{size}": entropy_n(units, size) for size in n}


@register_metric("msttr")
def mean_segmental_ttr(generated: Generated, segment: int = 100, by: Units = "tokens") -> Found:
    """Mean fraction of distinct tokens in segments of ``segment`` tokens (MSTTR, Johnson 1944)."""
    return {"msttr": msttr(generated.units(by), segment)}


@register_metric("self_bleu")
def self_bleu(generated: Generated, samples: int = 100, max_order: int = 4) -> Found:
    """Mean BLEU of each text against the others (Zhu et al. 2018): 1 where all texts are the same.

    Args:
        generated: the texts.
        samples: of how many texts, the first ones: the cost grows with the square.
        max_order: longest n-gram.
    """
    sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="metric 'self_bleu'")
    texts = generated.completions[:samples]
    if len(texts) < 2:
        return {"self_bleu": math.nan}
    metric = sacrebleu.BLEU(max_ngram_order=max_order, effective_order=True)
    scores = [metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    return {"self_bleu": statistics.fmean(scores) / 100.0}


@register_metric("length")
def length(generated: Generated, by: Units = "tokens") -> Found:
    """Mean, standard deviation, median, minimum and maximum number of tokens (or words) per text."""
    sizes = [len(units) for units in generated.units(by)]
    return {
        f"length_{by}/mean": statistics.fmean(sizes),
        f"length_{by}/std": statistics.pstdev(sizes),
        f"length_{by}/median": float(statistics.median(sizes)),
        f"length_{by}/min": float(min(sizes)),
        f"length_{by}/max": float(max(sizes)),
    }


@register_metric("perplexity")
def generated_perplexity(generated: Generated, model: str | None = None) -> Found:
    """Perplexity of the responses under a language model: how usual they are.

    Args:
        generated: the texts.
        model: hub id or folder, with its own tokenizer; None is the evaluation's reference.
    """
    if model is None:
        lm = _reference(generated, "perplexity")
        return {"perplexity": perplexity(lm, generated.episodes, max_tokens=generated.max_tokens)}
    return {"perplexity": _of_texts(generated, model, generated.completions, generated.prompts)}


@register_metric("reference_perplexity")
def reference_perplexity(generated: Generated, column: str = "reference", model: str | None = None) -> Found:
    """Perplexity of the reference texts after their prompts, under the policy and under a language model.

    A high value under the policy means that it no longer models the references. Both are computed after the
    same prompts, with an EOS.

    Args:
        generated: the texts.
        column: of references.
        model: hub id or folder, with its own tokenizer; None is the evaluation's reference, if it has one.
    """
    texts = [
        (prompt, text)
        for prompt, all_of in zip(generated.prompts, generated.references(column), strict=True)
        for text in all_of
    ]
    prompts, references = [prompt for prompt, _ in texts], [text for _, text in texts]
    found: Found = {}
    for name, lm in (("policy", generated.policy), ("model", model or generated.reference)):
        if lm is not None:
            found[f"reference_perplexity/{name}"] = _of_texts(generated, lm, references, prompts)
    return found


def _reference(generated: Generated, metric: str) -> Any:
    if generated.reference is None:
        raise ValueError(
            f"metric {metric!r} needs a language model: give reference=, or [{metric!r}, {{'model': ...}}]"
        )
    return generated.reference


def _of_texts(generated: Generated, lm: Any, texts: Sequence[str], prompts: Sequence[str]) -> float:
    """Perplexity of texts under a model that shares the policy's tokenizer, or is named and has its own."""
    tokenizer = generated.tokenizer
    if isinstance(lm, str):
        from textenv.agents.policies.language_policy import LanguagePolicy
        from textenv.tasks.prompts import load_tokenizer

        lm, tokenizer = LanguagePolicy(lm), load_tokenizer(lm)
    episodes = EpisodeBatch.from_texts(list(prompts), list(texts), tokenizer)
    return perplexity(lm, episodes, max_tokens=generated.max_tokens)
