"""Encode replies: the token ids between two turns of the policy, as plain text or in a chat template.

The policy's own ids are never encoded again. With a chat template the tokens around a reply are the
difference between a short conversation rendered with and without the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from textenv.prompts.continuations import encode_continuations
from textenv.prompts.messages import render, turn_end
from textenv.prompts.token_ids import is_unicode, token_ids
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _SAID = "textenvask", "textenvsay"
_CONTENT = "textenvreply"
_KEPT, _SHORT = 4096, 200
"""Most encoded replies that are kept, since games repeat theirs, and the most characters of each."""


class TurnTemplate:
    """Encodes replies.

    Args:
        tokenizer: of the episodes.
        chat: put replies into messages of the tokenizer's chat template; else they are appended as they are.
        options: further arguments of the template; see ``textenv.prompts.messages.chat_options``.

    Raises:
        ValueError: if ``chat`` and the tokenizer has no chat template, or the template changes earlier turns
            when a conversation goes on.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, chat: bool, options: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self._options = options
        added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        added |= {str(token) for token in tokenizer.all_special_tokens}
        longest_first = sorted((token for token in added if token), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._around: dict[str, tuple[str, str, str]] = {}
        self._encoded: dict[tuple[str, str, bool, str], list[int]] = {}
        if chat:
            self._role("user")

    def encode(self, text: str, *, role: str = "user", closed: bool, before: str = "") -> list[int]:
        """Token ids of a reply, with those that close the last turn and open the next one.

        Args:
            text: of the reply. Names of control tokens in it are encoded as plain text.
            role: of the message; "tool" or "user", for instance.
            closed: the previous turn ended with its stop token.
            before: end of the previous text, for tokenizers that tokenize the start of a text differently.

        Raises:
            ValueError: if the text cannot be tokenized, or the template refuses the role.
        """
        if len(text) + len(before) > _SHORT:
            return self._encode(text, role, closed, before)
        key = (text, role, closed, before)
        if key not in self._encoded:
            ids = self._encode(text, role, closed, before)
            if len(self._encoded) == _KEPT:
                self._encoded.clear()
            self._encoded[key] = ids
        return [*self._encoded[key]]

    def _encode(self, text: str, role: str, closed: bool, before: str) -> list[int]:
        if not is_unicode(text):
            raise ValueError(f"a reply must be encodable text, got {shown(text)}")
        if not self.chat:
            return self.plain(text, before)
        end, header, footer = self._role(role)
        control = self.has_control(text)
        # Encoded from the end of the turn on: some tokenizers treat the start of a text differently.
        texts = [end, end + header, footer] if control else [end, end + header + text + footer]
        closing, opening, *footers = token_ids(texts, self.tokenizer, special=False, name="chat template")
        if closed and opening[: len(closing)] == closing:
            opening = opening[len(closing) :]
        return [*opening, *self.plain(text, "\n"), *footers[0]] if control else opening

    def has_control(self, text: str) -> bool:
        """Whether a text spells a control token."""
        return self._control is not None and self._control.search(text) is not None

    def plain(self, text: str, before: str) -> list[int]:
        """Token ids of a text that continues another; names of control tokens are encoded as plain text."""
        if not text:
            return []
        pieces = [text]
        if self._control is not None:
            # A name of a control token is cut after its first character, so that no tokenizer recognises it.
            cuts = [match.start() + 1 for match in self._control.finditer(text)]
            pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        befores = [before, *pieces[:-1]]
        try:
            encoded = encode_continuations(befores, pieces, self.tokenizer)
        except Exception:
            token_ids(pieces, self.tokenizer, special=False, name="replies")  # names what can't be tokenised
            raise
        ids = [i for piece in encoded for i in piece]
        if self._control is None:
            return ids
        control = {*self.tokenizer.all_special_ids} - {self.tokenizer.unk_token_id}
        if control & set(ids):
            raise ValueError(f"a reply must not encode to control tokens, got {shown(text)}")
        return ids

    def _role(self, role: str) -> tuple[str, str, str]:
        """Texts of the template: end of the policy's turn, before and after the content of a reply."""
        if role in self._around:
            return self._around[role]
        begun = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
        spoken = [*begun, {"role": role, "content": _CONTENT}]
        closed = render(begun, self.tokenizer, generation_prompt=False, options=self._options)
        whole = render(spoken, self.tokenizer, generation_prompt=True, options=self._options)
        opened = render(begun[:1], self.tokenizer, generation_prompt=True, options=self._options)
        said = closed.rpartition(_SAID)[2]
        at = turn_end(said, self.tokenizer) or 0
        turn = closed[: len(closed) - len(said) + at]
        if not (whole.startswith(turn) and turn.startswith(opened)):
            raise ValueError(
                f"the chat template changes earlier turns when a message of the role {role!r} follows, so "
                "the policy's tokens would not be what it generated; use another template, or prompts "
                "without one"
            )
        header, found, footer = whole[len(turn) :].partition(_CONTENT)
        if not found:
            raise ValueError(f"the chat template does not show the messages of the role {role!r}")
        # After its stop token a turn may have more of the template, such as a line break.
        self._around[role] = said[:at], header, footer
        return self._around[role]
