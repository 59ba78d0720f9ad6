"""Texts of an episode of several turns as token ids: prompt with opening, and replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.texts import split_texts
from textenv.partners.partner import Opening, Partner, Reply, ToolDescription
from textenv.partners.registry import PartnerSpec
from textenv.prompts.conversations import MESSAGES, USER_TEXT, user_message
from textenv.prompts.messages import OPTION_COLUMNS, chat_options, check_messages, render
from textenv.prompts.prompt_set import PromptSet
from textenv.prompts.token_ids import token_ids
from textenv.prompts.turn_template import TurnTemplate
from textenv.utils.checks import check_token_ids
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_FOREIGN = "textenvforeign"


class TurnPrompts:
    """Encodes what stands around the turns of the policy.

    Args:
        prompts: the prompts of the episodes.
        tokenizer: of the episodes.
        vocab_size: token ids that a partner gives must be below it.
        chat: put openings and replies into messages of the tokenizer's chat template.
        tools: what the policy is shown of a partner's tools: schemas for the chat template, or a text that
            follows the prompt. Prompts with a column ``tools`` keep theirs.

    Raises:
        ValueError: see `TurnTemplate`.
    """

    def __init__(
        self,
        prompts: PromptSet,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        *,
        chat: bool,
        tools: ToolDescription = None,
    ) -> None:
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self.chat = chat
        self._tools = tools
        self._templates: dict[str, TurnTemplate] = {}
        self._template_of(0)

    def partner(self, spec: PartnerSpec) -> Partner:
        """A new partner that knows the tokenizer."""
        return spec.bound(self._tokenizer, chat=self.chat)

    @property
    def tool_tokens(self) -> int:
        """By how many tokens the description of the tools makes the first prompt longer."""
        return len(self.start(0, None)) - int(self._prompts.lengths[0]) if self._tools else 0

    def columns(self, index: int) -> dict[str, Any]:
        """The columns of a prompt."""
        return {name: column[index] for name, column in self._prompts.columns.items()}

    def start(self, index: int, opening: Opening) -> list[int]:
        """Token ids of a prompt with the partner's opening.

        Raises:
            TypeError: if the opening is no text, messages or None.
            ValueError: if it cannot be encoded, or messages come without a chat template.
        """
        ids, _, lengths = self._prompts.rows(np.array([index]))
        start: list[int] = ids[0, : int(lengths[0])].tolist()
        about = self._tools if isinstance(self._tools, str) else ""
        if opening is not None and not isinstance(opening, str):
            if not self.chat:
                raise ValueError(
                    "a partner may begin with messages only where prompts are chats (chat_template=True), "
                    f"got {shown(opening)}"
                )
            opening = check_messages(opening, "what Partner.begin returned")
        if not self.chat:
            assert opening is None or isinstance(opening, str)
            if not (text := about + (opening or "")):
                return start
            before = self._tokenizer.decode(start[-1:])
            return [*start, *self._template_of(index).encode(text, closed=True, before=str(before))]
        columns = self.columns(index)
        if self._tools and not about and not columns.get(OPTION_COLUMNS[0]):
            columns[OPTION_COLUMNS[0]] = self._tools
        elif not (about or opening):
            return start
        return self._chat_start(index, columns, about, opening)

    def _chat_start(self, index: int, columns: dict[str, Any], about: str, opening: Opening) -> list[int]:
        """Token ids of a chat with the partner's opening, whose control tokens are plain text."""
        asked = columns.get(USER_TEXT) or ""
        messages = [*columns[MESSAGES]] if MESSAGES in columns else user_message(asked)
        template, foreign = self._template_of(index), dict[str, str]()

        def marked(text: str) -> str:
            if not template.has_control(text):
                return text
            mark = f"{_FOREIGN}{len(foreign)}x"
            foreign[mark] = text
            return mark

        messages = _continued(messages, about)
        if opening and not isinstance(opening, str):
            messages = messages if MESSAGES in columns or asked or about else []
            messages += [{**message, "content": marked(message["content"] or "")} for message in opening]
        else:
            messages = _continued(messages, marked(str(opening or "")))
        options = chat_options(columns, f"prompt {index}")
        text = render(messages, self._tokenizer, generation_prompt=True, options=options)
        ids: list[int] = []
        for mark, content in foreign.items():
            before, found, text = text.partition(mark)
            if not found:
                raise ValueError(f"the chat template does not show the partner's opening {shown(content)}")
            ids += self._encoded(before) + template.plain(content, before)
        return ids + self._encoded(text)

    def _encoded(self, text: str) -> list[int]:
        return token_ids([text], self._tokenizer, special=False, name="the partner's opening")[0]

    def reply(self, index: int, reply: Reply, *, closed: bool, said: str) -> list[int]:
        """Token ids that follow a turn, with those that close it and open the next one.

        Args:
            index: of the prompt.
            reply: what follows.
            closed: the turn ended by its stop token.
            said: text of the turn.
        """
        if reply.ids is not None:
            return list(check_token_ids("Reply.ids", list(reply.ids), self._vocab_size))
        return self._template_of(index).encode(reply.text, role=reply.role, closed=closed, before=said)

    def turn_texts(self, turns: Sequence[Sequence[int]]) -> list[str]:
        """Turns as texts, each given with the token before it."""
        pairs = split_texts([list(ids) for ids in turns], [1] * len(turns), self._tokenizer)
        return [text for _, text in pairs]

    def _template_of(self, index: int) -> TurnTemplate:
        """The template with the options of a prompt."""
        columns = self.columns(index) if self.chat else {}
        options = chat_options({OPTION_COLUMNS[1]: columns.get(OPTION_COLUMNS[1])}, f"prompt {index}")
        key = json.dumps(options, sort_keys=True, default=str)
        if key not in self._templates:
            self._templates[key] = TurnTemplate(self._tokenizer, chat=self.chat, options=options)
        return self._templates[key]


def _continued(messages: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """A text put at the end of the last message, if that is the user's, or as a message of its own."""
    if not text:
        return [*messages]
    if messages and messages[-1]["role"] == "user":
        return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + text}]
    return [*messages, *user_message(text)]


def padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """N lists of ids as tensors: ids (n, width), attention mask (n, width) int8 and lengths (n,)."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    ids = torch.full((len(rows), int(lengths.max())), pad_token_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(-1)
    return ids, mask.to(torch.int8), lengths
