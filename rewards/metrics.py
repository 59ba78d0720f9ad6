"""Rewards that compare a response with the task's reference texts. Shape letters: B episodes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.checks import check_column, check_text, column
from textenv.rewards.registry import register_reward
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError, quote
from textenv.utils.checks import check_at_least, check_choice, check_flag, check_number
from textenv.utils.extras import import_extra


class ReferenceReward(RewardTerm):
    """Base of rewards that compare with reference texts: a column of strings, or of lists of strings.

    Args:
        column: the task column.
    """

    def __init__(self, column: str = "reference") -> None:
        check_text(f"{self.name}: column", column)
        self.column = column

    def bind(self, env: Any) -> None:
        """Bind to an environment that has the column."""
        super().bind(env)
        check_column(env, self.column, self.name)

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) similarity of response and references."""
        texts = episodes.completion_texts(self.tokenizer)
        values = []
        for row, given in enumerate(column(episodes, self.column, self.name)):
            references = [given] if isinstance(given, str) else given
            if not isinstance(references, list | tuple) or not references:
                raise RewardError(
                    f"reward {self.name!r}: column {self.column!r} must hold a string or a list of strings, "
                    f"got {given!r} for {quote(episodes, row, self)}"
                )
            values.append(self.similarity(texts[row], [str(reference) for reference in references]))
        return torch.tensor(values, dtype=torch.float32, device=episodes.device)

    @abstractmethod
    def similarity(self, text: str, references: list[str]) -> float:
        """Similarity of one response to its references."""


@register_reward("rouge")
class ROUGE(ReferenceReward):
    """ROUGE overlap with the reference (Lin 2004), in [0, 1]; the best of several references counts.

    Args:
        variant: "rouge1", "rouge2", ..., "rougeL" or "rougeLsum".
        measure: "fmeasure", "precision" or "recall".
        stem: compare Porter stems.
        column: task column of references.
    """

    def __init__(
        self,
        variant: str = "rougeL",
        *,
        measure: str = "fmeasure",
        stem: bool = True,
        column: str = "reference",
    ) -> None:
        scorers = import_extra("rouge_score.rouge_scorer", extra="metrics", what="reward 'rouge'")
        super().__init__(column)
        check_choice("rouge: measure", measure, ("fmeasure", "precision", "recall"))
        known = ("rougeL", "rougeLsum", *(f"rouge{n}" for n in range(1, 10)))
        check_choice("rouge: variant", variant, known)
        check_flag("rouge: stem", stem)
        self.variant, self.measure = variant, measure
        self._scorer = scorers.RougeScorer([variant], use_stemmer=stem)

    def similarity(self, text: str, references: list[str]) -> float:
        """Best ROUGE against any reference."""
        scores = [self._scorer.score(reference, text)[self.variant] for reference in references]
        return max(float(getattr(score, self.measure)) for score in scores)


class _SacreBLEU(ReferenceReward):
    """Base of the sentence-level metrics of sacrebleu, scaled from percent to 1."""

    metric: Any

    def similarity(self, text: str, references: list[str]) -> float:
        """The metric's sentence score."""
        return float(self.metric.sentence_score(text, references).score) / 100.0


@register_reward("bleu")
class BLEU(_SacreBLEU):
    """Sentence BLEU against the references (sacrebleu, exponential smoothing), in [0, 1].

    Args:
        max_order: longest n-gram.
        lowercase: ignore case.
        column: task column of references.
    """

    def __init__(self, *, max_order: int = 4, lowercase: bool = False, column: str = "reference") -> None:
        sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="reward 'bleu'")
        super().__init__(column)
        check_at_least("bleu: max_order", max_order, 1)
        check_flag("bleu: lowercase", lowercase)
        # Effective order: a text shorter than four tokens is compared by the n-grams that it has.
        self.metric = sacrebleu.BLEU(max_ngram_order=max_order, lowercase=lowercase, effective_order=True)


@register_reward("chrf")
class CHRF(_SacreBLEU):
    """chrF character n-gram F-score against the references (Popovic 2015), in [0, 1].

    Args:
        word_order: 0 for chrF, 2 for chrF++.
        lowercase: ignore case.
        column: task column of references.
    """

    def __init__(self, *, word_order: int = 0, lowercase: bool = False, column: str = "reference") -> None:
        sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="reward 'chrf'")
        super().__init__(column)
        check_at_least("chrf: word_order", word_order, 0)
        check_flag("chrf: lowercase", lowercase)
        self.metric = sacrebleu.CHRF(word_order=word_order, lowercase=lowercase)


@register_reward("ter")
class TER(_SacreBLEU):
    """Minus the translation edit rate against the references (Snover et al. 2006): 0 is perfect.

    Args:
        clip: the reward is at least ``-clip`` (an edit rate has no upper bound); None = no limit.
        case_sensitive: distinguish upper and lower case.
        column: task column of references.
    """

    def __init__(
        self, *, clip: float | None = 1.0, case_sensitive: bool = False, column: str = "reference"
    ) -> None:
        sacrebleu = import_extra("sacrebleu.metrics", extra="metrics", what="reward 'ter'")
        super().__init__(column)
        if clip is not None:
            check_number("ter: clip", clip, 0)
        check_flag("ter: case_sensitive", case_sensitive)
        self.clip = clip
        self.metric = sacrebleu.TER(case_sensitive=case_sensitive)

    def similarity(self, text: str, references: list[str]) -> float:
        """Minus the edit rate, clipped."""
        rate = super().similarity(text, references)
        return -rate if self.clip is None else -min(rate, self.clip)
