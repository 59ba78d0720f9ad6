"""Encode prompts and completions (texts or messages) into episodes; errors name the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from textenv.episodes.batch import EpisodeBatch
from textenv.prompts.chat import TURNS, SplitConversation, encode_split, split_conversation
from textenv.prompts.conversations import conversation_columns
from textenv.prompts.messages import chat_options, takes_tools, warn_no_tools
from textenv.prompts.pairs import end_response, eos_to_append
from textenv.utils.checks import check_at_least, check_choice, check_flag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def raise_at(place: str, error: Exception) -> NoReturn:
    """Raise the error again, with the place in front of its message.

    Raises:
        TypeError: if ``error`` is a TypeError.
        ValueError: otherwise.
    """
    kind = TypeError if isinstance(error, TypeError) else ValueError
    raise kind(f"{place}: {error}") from error


Pair = tuple[str, Any, Any, Mapping[str, Any]]
"""(place, prompt, completion, the record's other columns). The chat template may use the other columns."""


@dataclass
class PairEncoder:
    """Encodes the records of one source into episodes; see ``textenv.data.episodes_from_records``."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    append_eos: bool
    chat_template: bool
    turns: str
    _tools_missed: bool = False

    def __post_init__(self) -> None:
        if self.max_length is not None:
            check_at_least("max_length", self.max_length, 1)
        check_flag("append_eos", self.append_eos)
        check_flag("chat_template", self.chat_template)
        check_choice("turns", self.turns, TURNS)

    def encode(self, pairs: Sequence[Pair], rewards: Sequence[float] | None = None) -> EpisodeBatch:
        """Encode n records.

        Args:
            pairs: n records. Prompt and completion are both texts or both lists of messages. If the
                completion starts with messages of the prompt, these are used once.
            rewards: n numbers, the reward of the last action of each episode. None = no rewards.

        Returns:
            n episodes. If a chat template rendered them, ``extras`` has one column with the original prompts;
            see ``textenv.prompts.conversations.conversation_columns``.

        Raises:
            ValueError: if a record cannot be encoded. The message names the place of the first one.
            TypeError: if a record mixes texts and messages. The message names the place.
        """
        try:
            batch = self._encode(pairs, rewards)
            empty = ~batch.action_mask.any(-1)
            if bool(empty.any()):
                raise ValueError(
                    "no token to learn from: the completion is empty and nothing is appended to it"
                )
            return batch
        except (TypeError, ValueError) as error:
            if len(pairs) == 1:
                raise_at(pairs[0][0], error)
            for i, pair in enumerate(pairs):  # one by one, to find the record that fails
                self.encode([pair], None if rewards is None else rewards[i : i + 1])
            raise

    def _encode(self, pairs: Sequence[Pair], rewards: Sequence[float] | None) -> EpisodeBatch:
        texts = [isinstance(prompt, str) and isinstance(reply, str) for _, prompt, reply, _ in pairs]
        if not self.chat_template and all(texts):
            return EpisodeBatch.from_texts(
                [prompt for _, prompt, _, _ in pairs],
                [completion for _, _, completion, _ in pairs],
                self.tokenizer,
                rewards=rewards,
                append_eos=self.append_eos,
                max_length=self.max_length,
            )
        splits, prompts = [], []
        for (_, prompt, reply, row), plain in zip(pairs, texts, strict=True):
            messages = joined_conversation(prompt, reply, texts_too=self.chat_template)
            options = self._options(row)
            splits.append(split_conversation(messages, self.tokenizer, turns=self.turns, options=options))
            prompts.append(prompt if plain else self._before_the_actions(messages))
        batch = self._from_splits(splits, rewards)
        batch.extras = {name: list(kept) for name, kept in conversation_columns(prompts, {}).items()}
        return batch

    def _before_the_actions(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages before the first one whose tokens are actions."""
        if self.turns == "last":
            return messages[:-1]
        return messages[: next(i for i, message in enumerate(messages) if message["role"] == "assistant")]

    def _options(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if row.get("tools") and not takes_tools(self.tokenizer):
            if not self._tools_missed:
                warn_no_tools()
            self._tools_missed = True
            row = {name: value for name, value in row.items() if name != "tools"}
        return chat_options(row, "the record")

    def _from_splits(
        self, splits: Sequence[SplitConversation], rewards: Sequence[float] | None
    ) -> EpisodeBatch:
        eos = eos_to_append(self.tokenizer) if self.append_eos else None
        prompts, responses, masks, cut = [], [], [], []
        for split, (prompt, spoken, is_action) in zip(
            splits, encode_split(splits, self.tokenizer), strict=True
        ):
            own = None if split.ended else eos
            response, was_cut = end_response(spoken, len(prompt), own, self.max_length, "the prompt")
            prompts.append(prompt)
            responses.append(response)
            masks.append([*is_action, True][: len(response)])  # True: an EOS that was appended
            cut.append(was_cut)
        truncated = torch.tensor(cut, dtype=torch.bool)
        pad = self.tokenizer.pad_token_id
        batch = EpisodeBatch.from_ids(
            prompts,
            responses,
            pad_token_id=0 if pad is None else pad,
            terminated=~truncated,
            truncated=truncated,
        )
        for i, is_action in enumerate(masks):
            start = len(prompts[i])
            batch.action_mask[i, start : start + len(is_action)] = torch.tensor(is_action, dtype=torch.bool)
        if rewards is not None:
            batch.rewards = batch.at_last_action(torch.tensor(rewards, dtype=torch.float32))
        return batch


def joined_conversation(prompt: Any, completion: Any, *, texts_too: bool = False) -> list[dict[str, Any]]:
    """Join prompt and completion to one conversation.

    Args:
        prompt: messages, or a text that becomes a user message.
        completion: messages, or a text that becomes an assistant message. Messages at its start that repeat
            the end of the prompt are dropped.
        texts_too: accept texts as messages. If False, a text is accepted only as a prompt that the completion
            repeats.

    Raises:
        TypeError: if texts and messages are mixed and ``texts_too`` is False.
    """
    before, after = _messages(prompt, "user"), _messages(completion, "assistant")
    most = min(len(before), len(after) - 1)
    repeated = next((k for k in range(most, 0, -1) if before[-k:] == after[:k]), 0)
    mixed = isinstance(prompt, str) or isinstance(completion, str)
    if mixed and not texts_too and not repeated:
        raise TypeError("prompt and completion must both be texts or both messages, in all records alike")
    return [*before, *after[repeated:]]


def _messages(value: Any, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
