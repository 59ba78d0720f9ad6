"""Rewards computed from the text or tokens of a response. Shape letter: B episodes."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.checks import check_column, check_text, column
from textenv.rewards.patterns import TIME_LIMIT, Pattern
from textenv.rewards.registry import register_reward
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError, quote
from textenv.utils.checks import check_at_least, check_choice, check_flag, check_number, check_positive
from textenv.utils.extras import import_extra


def response_ids(episodes: EpisodeBatch) -> list[list[int]]:
    """B lists: the ids of the tokens that the policy chose."""
    rows = zip(episodes.input_ids.tolist(), episodes.action_mask.tolist(), strict=True)
    return [[token for token, chosen in zip(ids, mask, strict=True) if chosen] for ids, mask in rows]


@register_reward("missing-eos")
class MissingEOS(RewardTerm):
    """Penalty for a response that was truncated by the token budget.

    Args:
        penalty: subtracted from such an episode's reward, >= 0.
    """

    def __init__(self, penalty: float = 1.0) -> None:
        check_number("missing-eos: penalty", penalty, 0)
        self.penalty = penalty

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,): minus the penalty where the episode did not terminate."""
        return -self.penalty * (~episodes.terminated).float()


@register_reward("length")
class Length(RewardTerm):
    """Reward or penalty on the number of response tokens n: linear, distance to a target, or soft overlong.

    - "linear": ``coef * n``
    - "target": ``-|coef| * |n - target|``
    - "overlong" (DAPO's soft overlong punishment, Yu et al. 2025, eq. 13): 0 up to ``target`` tokens, then
      falling linearly to ``-|coef|`` at ``target + buffer`` tokens, and ``-|coef|`` beyond.

    Args:
        coef: weight; reward per token for "linear".
        mode: "linear", "target" or "overlong".
        target: tokens; needed by "target" and "overlong".
        buffer: width of the slope in tokens; needed by "overlong".
    """

    def __init__(
        self,
        coef: float = -0.01,
        *,
        mode: str = "linear",
        target: int | None = None,
        buffer: int | None = None,
    ) -> None:
        check_number("length: coef", coef)
        check_choice("length: mode", mode, ("linear", "target", "overlong"))
        if (mode == "linear") != (target is None):
            needs = "takes no target" if mode == "linear" else "needs a target"
            raise ValueError(f"length: mode {mode!r} {needs}, got target={target!r}")
        if (mode == "overlong") != (buffer is not None):
            needs = "needs a buffer" if mode == "overlong" else "takes no buffer"
            raise ValueError(f"length: mode {mode!r} {needs}, got buffer={buffer!r}")
        if target is not None:
            check_at_least("length: target", target, 0)
        if buffer is not None:
            check_at_least("length: buffer", buffer, 1)
        self.coef, self.mode, self.target, self.buffer = coef, mode, target, buffer

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) from the response lengths."""
        lengths = episodes.response_lengths.float()
        if self.target is None:
            return self.coef * lengths
        if self.buffer is None:
            return -abs(self.coef) * (lengths - self.target).abs()
        return -abs(self.coef) * ((lengths - self.target) / self.buffer).clamp(0.0, 1.0)


@register_reward("repetition")
class Repetition(RewardTerm):
    """Penalty for repeated n-grams of tokens: ``-coef`` times the fraction of n-grams that occurred before.

    Args:
        n: tokens of an n-gram. Shorter responses have none, and no penalty.
        coef: weight, >= 0.
    """

    def __init__(self, n: int = 3, coef: float = 1.0) -> None:
        check_at_least("repetition: n", n, 1)
        check_number("repetition: coef", coef, 0)
        self.n, self.coef = n, coef

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) in [-coef, 0]."""
        fractions = []
        for ids in response_ids(episodes):
            grams = Counter(tuple(ids[i : i + self.n]) for i in range(len(ids) - self.n + 1))
            total = sum(grams.values())
            fractions.append(1 - len(grams) / total if total else 0.0)
        return -self.coef * torch.tensor(fractions, device=episodes.device)


@register_reward("regex")
class Regex(RewardTerm):
    """Reward for responses that match a regular expression: one for all, or one per prompt.

    Args:
        pattern: a Python regular expression, or None if ``column`` names a column of patterns.
        column: task column of patterns.
        how: "search" anywhere, "match" at the start, "fullmatch", or "count" the matches.
        reward: for a match (times the number of matches with "count").
        otherwise: reward without a match.
        ignore_case: match letters of either case.
        special_tokens: match the text with its special tokens, such as EOS.
        timeout: seconds for one response; a pattern that takes longer is an error.
    """

    def __init__(
        self,
        pattern: str | None = None,
        *,
        column: str | None = None,
        how: str = "search",
        reward: float = 1.0,
        otherwise: float = 0.0,
        ignore_case: bool = False,
        special_tokens: bool = False,
        timeout: float = TIME_LIMIT,
    ) -> None:
        check_choice("regex: how", how, ("search", "match", "fullmatch", "count"))
        if (pattern is None) == (column is None):
            raise ValueError(
                f"regex: give either pattern or column, got pattern={pattern!r} and column={column!r}"
            )
        check_number("regex: reward", reward)
        check_number("regex: otherwise", otherwise)
        check_flag("regex: ignore_case", ignore_case)
        check_flag("regex: special_tokens", special_tokens)
        check_positive("regex: timeout", timeout)
        if column is not None:
            check_text("regex: column", column)
        self.flags = re.IGNORECASE if ignore_case else re.NOFLAG
        self.pattern, self.column, self.how = pattern, column, how
        self.reward, self.otherwise = reward, otherwise
        self.special_tokens, self.timeout = special_tokens, timeout
        self._pattern = None if pattern is None else self._compile("regex: pattern", pattern)

    def bind(self, env: Any) -> None:
        """Bind to an environment that has the column.

        Raises:
            ValueError: if the task lacks the column.
        """
        super().bind(env)
        if self.column is not None:
            check_column(env, self.column, self.name)

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,): ``reward`` or ``otherwise``.

        Raises:
            RewardError: if the column does not contain a regular expression, or one exceeds the time limit.
        """
        texts = self.completion_texts(episodes)
        counts = [self._count(self._of(episodes, row), text) for row, text in enumerate(texts)]
        rewards = [self.reward * count if count else self.otherwise for count in counts]
        return torch.tensor(rewards, dtype=torch.float32, device=episodes.device)

    def _compile(self, name: str, pattern: Any) -> Pattern:
        return Pattern(name, pattern, flags=self.flags, timeout=self.timeout)

    def _of(self, episodes: EpisodeBatch, row: int) -> Pattern:
        """The pattern for the response of episode ``row``."""
        if self._pattern is not None:
            return self._pattern
        assert self.column is not None
        pattern = column(episodes, self.column, self.name)[row]
        try:
            return self._compile(f"reward {self.name!r}: column {self.column!r}", pattern)
        except ValueError as error:
            raise RewardError(f"{error} for {quote(episodes, row, self)}") from error

    def _count(self, pattern: Pattern, text: str) -> int:
        if self.how == "count":
            return sum(1 for _ in pattern.finditer(text))
        return int(pattern.search(text, self.how) is not None)


@register_reward("exact-match")
class ExactMatch(RewardTerm):
    """Reward for responses equal to a task column's text (or to one of its texts, if it holds lists).

    In episodes with a partner the policy's last turn is compared.

    Args:
        column: task column of answers: strings, numbers, or lists of acceptable ones.
        pattern: regular expression whose first group (or whole match) is compared instead of the whole
            response; the last match counts, and a response without a match is wrong.
        ignore_case: letters of either case are equal.
        strip: ignore blanks around response and answer.
        reward: for a correct response.
        otherwise: reward for a wrong one.
        special_tokens: compare the text with its special tokens, such as EOS.
        timeout: seconds for the pattern on one response; a pattern that takes longer is an error.
    """

    def __init__(
        self,
        column: str = "answer",
        *,
        pattern: str | None = None,
        ignore_case: bool = False,
        strip: bool = True,
        reward: float = 1.0,
        otherwise: float = 0.0,
        special_tokens: bool = False,
        timeout: float = TIME_LIMIT,
    ) -> None:
        check_text("exact-match: column", column)
        check_number("exact-match: reward", reward)
        check_number("exact-match: otherwise", otherwise)
        check_positive("exact-match: timeout", timeout)
        flags = {"ignore_case": ignore_case, "strip": strip, "special_tokens": special_tokens}
        for field, value in flags.items():
            check_flag(f"exact-match: {field}", value)
        self._pattern = None if pattern is None else Pattern("exact-match: pattern", pattern, timeout=timeout)
        self.column, self.pattern = column, pattern
        self.ignore_case, self.strip = ignore_case, strip
        self.reward, self.otherwise = reward, otherwise
        self.special_tokens = special_tokens

    def bind(self, env: Any) -> None:
        """Bind to an environment that has the column."""
        super().bind(env)
        check_column(env, self.column, self.name)

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,): ``reward`` or ``otherwise``.

        Raises:
            RewardError: if the pattern exceeds its time limit.
        """
        texts = self.answer_texts(episodes)
        answers = column(episodes, self.column, self.name)
        rewards = [
            self.reward if self._is_right(text, answer) else self.otherwise
            for text, answer in zip(texts, answers, strict=True)
        ]
        return torch.tensor(rewards, dtype=torch.float32, device=episodes.device)

    def _is_right(self, text: str, answer: Any) -> bool:
        if self._pattern is not None:
            found = list(self._pattern.finditer(text))
            if not found:
                return False
            text = found[-1].group(1 if self._pattern.groups else 0) or ""
        accepted = answer if isinstance(answer, list | tuple) else [answer]
        return self._plain(text) in {self._plain(str(one)) for one in accepted}

    def _plain(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.ignore_case else text


@register_reward("lexicon-sentiment")
class LexiconSentiment(RewardTerm):
    """Sentiment of the response from the VADER lexicon (Hutto and Gilbert 2014); needs no model.

    Args:
        scale: "compound" in [-1, 1], or "valence", 4 times as large (the range of the lexicon's ratings).
        target: "positive" or "negative" (with reversed sign).
        with_prompt: score prompt and response as one text.
    """

    def __init__(
        self, scale: str = "compound", *, target: str = "positive", with_prompt: bool = False
    ) -> None:
        module, what = "vaderSentiment.vaderSentiment", "reward 'lexicon-sentiment'"
        analyzers = import_extra(module, extra="reviews", what=what)
        check_choice("lexicon-sentiment: scale", scale, ("compound", "valence"))
        check_choice("lexicon-sentiment: target", target, ("positive", "negative"))
        check_flag("lexicon-sentiment: with_prompt", with_prompt)
        self.factor = (4.0 if scale == "valence" else 1.0) * (1.0 if target == "positive" else -1.0)
        self.with_prompt = with_prompt
        self._analyzer = analyzers.SentimentIntensityAnalyzer()

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) compound scores, scaled."""
        pairs = episodes.texts(self.tokenizer)
        texts = [(prompt if self.with_prompt else "") + completion for prompt, completion in pairs]
        compound = [self._analyzer.polarity_scores(text)["compound"] for text in texts]
        return self.factor * torch.tensor(compound, dtype=torch.float32, device=episodes.device)
