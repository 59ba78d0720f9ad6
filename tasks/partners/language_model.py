"""The partner "language-model": a simulated user, played by a causal LM."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from textenv.partners.partner import Partner, Reply
from textenv.partners.registry import register_partner
from textenv.prompts.conversations import USER_TEXT
from textenv.tasks.partners.speaker import Speaker
from textenv.utils.checks import check_at_least
from textenv.utils.names import shown


@register_partner("language-model")
class LanguageModel(Partner):
    """A language model replies in the role of a user; the replies of a step are generated in one batch.

    The model sees the conversation with the roles exchanged: the policy's turns are its user's. Its noise
    depends on the seed, the group of the episode and the turn only.

    Args:
        model: a causal LM, by name, folder or object.
        tokenizer: of the model; None is the model's own.
        persona: its system message. Columns of the prompt replace names in braces: "You want to {goal}.".
        opening: what the user says at first, a text with columns likewise; None if the prompt says it.
        done: the episode ends when a reply holds this text, and the reply stops before it; None = never.
        max_new_tokens: most tokens of a reply.
        reward_done: reward when the user says ``done``.
        device: of a model that is loaded here.
        temperature: of sampling.
        top_p: nucleus of sampling.
        greedy: the most likely tokens instead of sampled ones.

    Raises:
        ValueError: if an argument is out of range, or the model cannot be loaded.
    """

    max_reply_tokens = 64

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        persona: str = "You are a user who talks to an assistant.",
        opening: str | None = None,
        done: str | None = "DONE",
        max_new_tokens: int = 40,
        reward_done: float = 0.0,
        device: str = "cpu",
        temperature: float = 1.0,
        top_p: float = 1.0,
        greedy: bool = False,
    ) -> None:
        check_at_least("max_new_tokens", max_new_tokens, 1)
        if done == "":
            raise ValueError("done must be a text or None, got ''")
        sampling = {"temperature": temperature, "top_p": top_p, "greedy": greedy}
        settings = tuple(sorted({**sampling, "max_new_tokens": max_new_tokens, "device": device}.items()))
        # The rows of an environment share the model.
        by_name = isinstance(model, str) and (tokenizer is None or isinstance(tokenizer, str))
        self.speaker = (_shared if by_name else _speaker)(model, tokenizer, settings)
        self.persona, self.opening, self.done = persona, opening, done
        self.reward_done = reward_done
        self._messages: list[dict[str, str]] = []
        self._seed = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        twin = copy.copy(self)
        twin._messages = copy.deepcopy(self._messages)
        return twin

    def begin(self, rng: np.random.Generator, **columns: Any) -> str | None:
        """Start a conversation; the persona and the opening are filled in."""
        self._seed = int(rng.integers(2**62))
        self._messages = [{"role": "system", "content": _filled(self.persona, columns, "persona")}]
        first = None if self.opening is None else _filled(self.opening, columns, "opening")
        heard = columns.get(USER_TEXT) or first  # a prompt that is a text is the user's first message
        if heard:
            self._messages.append({"role": "assistant", "content": heard})
        return first

    @classmethod
    def reply_batch(cls, partners: Sequence[LanguageModel], texts: Sequence[str]) -> list[Reply]:
        """The replies of all rows whose turn ended in this step."""
        for partner, text in zip(partners, texts, strict=True):
            partner._messages.append({"role": "user", "content": text})
        speaker = partners[0].speaker
        seeds = [(partner._seed + len(partner._messages)) % 2**62 for partner in partners]
        said = speaker.speak([partner._messages for partner in partners], seeds)
        return [partner._reply(text) for partner, text in zip(partners, said, strict=True)]

    def _reply(self, text: str) -> Reply:
        ended = self.done is not None and self.done in text
        if ended:
            text = text.partition(str(self.done))[0].rstrip()
        self._messages.append({"role": "assistant", "content": text})
        # An empty reply would not separate two turns.
        return Reply(text or "...", reward=self.reward_done if ended else 0.0, done=ended)


def _speaker(model: Any, tokenizer: Any, settings: tuple[tuple[str, Any], ...]) -> Speaker:
    return Speaker(model, tokenizer, **dict(settings))


@lru_cache(maxsize=2)
def _shared(model: Any, tokenizer: Any, settings: tuple[tuple[str, Any], ...]) -> Speaker:
    return _speaker(model, tokenizer, settings)


def _filled(text: str, columns: Mapping[str, Any], name: str) -> str:
    try:
        return text.format_map(columns)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(map(repr, columns)) or "there are none"
        raise ValueError(
            f"{name} must name columns of the prompts in braces (known: {known}), got {shown(text)}"
        ) from error
