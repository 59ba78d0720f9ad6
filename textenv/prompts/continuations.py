"""Completions as token ids that continue a prompt: nothing is added or lost at the boundary.

Most tokenizers treat the start of a text differently: SentencePiece adds a space, T5's drops spaces,
WordPiece starts a new word. A completion is not the start of a text, so it is tokenised after an anchor, a
character whose tokens are removed again. This is exact if the ids start with the anchor's own ids: then no
merge crossed the boundary.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = 128
"""Number of tokens that are tested to see whether a tokenizer needs anchors."""
_ANCHORS = 8
"""Number of anchors tried for a text; the first works for nearly all."""


def encode_continuations(
    prompts: Sequence[str], completions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Tokenise B completions as continuations of their prompts.

    The ids of prompt and completion together decode to prompt + completion, or, if a tokenizer cannot
    represent a text (T5 has no line breaks, BERT no capitals), to its decoded form of prompt + completion.

    Args:
        prompts: B strings; only their last characters matter. After an empty one a completion starts a text.
        completions: B strings.
        tokenizer: a transformers tokenizer.

    Returns:
        B lists of ids without special tokens, except those written in the texts.

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> encode_continuations(["a"], ["cb"], letter_tokenizer("abc"))
        [[2, 1]]
    """
    if not len(completions):
        return []
    rule = _rule(tokenizer)
    found: list[list[int] | None] = [None] * len(completions)
    if not rule.plain:
        groups: dict[tuple[bool, bool], list[int]] = {}
        for i, prompt in enumerate(prompts):
            if prompt.strip() or (prompt and not rule.drops_blanks):
                gap = rule.drops_blanks and prompt[-1].isspace()
                groups.setdefault((prompt[-1].isalnum() or gap, gap), []).append(i)
        for (in_word, gap), rows in groups.items():
            first, second = (rule.letters, rule.marks) if in_word else (rule.marks, rule.letters)
            for anchor, ids in (*first, *second):
                texts = [anchor + " " * gap + completions[i] for i in rows]
                for i, whole in zip(rows, _encode(texts, tokenizer), strict=True):
                    if whole[: len(ids)] == ids:
                        found[i] = whole[len(ids) :]
                rows = [i for i in rows if found[i] is None]
                if not rows:
                    break
    rest = [i for i, ids in enumerate(found) if ids is None]
    if rest:
        for i, ids in zip(rest, _encode([completions[i] for i in rest], tokenizer), strict=True):
            found[i] = ids
    return [ids for ids in found if ids is not None]


@dataclass(frozen=True)
class _Rule:
    """How to tokenise continuations with a tokenizer."""

    plain: bool
    """A text has the same tokens at the start as after another text."""
    drops_blanks: bool = False
    """Spaces at the end of a text give no token, so those of the prompt belong to the completion."""
    letters: tuple[tuple[str, list[int]], ...] = ()
    """Anchors (character, ids) inside a word, the best first."""
    marks: tuple[tuple[str, list[int]], ...] = ()
    """Anchors outside words."""


_rules: weakref.WeakKeyDictionary[Any, _Rule] = weakref.WeakKeyDictionary()


def _rule(tokenizer: PreTrainedTokenizerBase) -> _Rule:
    if tokenizer not in _rules:
        _rules[tokenizer] = _Rule(plain=True) if _is_plain(tokenizer) else _with_anchors(tokenizer)
    return _rules[tokenizer]


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token's text after another token is tokenised to ids that decode to it there; a sample."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(i for i in tokenizer.get_vocab().values() if i not in special)
    context = next((i for i in ids if tokenizer.batch_decode([[i]])[0].isalnum()), None)
    if context is None:
        return True
    start = tokenizer.batch_decode([[context]])[0]
    tried = ids[:: -(-len(ids) // _PROBES)]
    read = tokenizer.batch_decode([[context, i] for i in tried])
    said = [text[len(start) :] for text in read if text.startswith(start)]
    said = [text for text in said if text.strip() and text.isascii() and text.isprintable()]
    encoded = _encode(said, tokenizer) if said else []
    again = tokenizer.batch_decode([[context, *ids] for ids in encoded])
    return again == [start + text for text in said]


def _with_anchors(tokenizer: PreTrainedTokenizerBase) -> _Rule:
    vocabulary = tokenizer.get_vocab()
    pieces = Counter(character for token in vocabulary for character in set(token))
    # A character that is in few tokens is rarely merged with the next one.
    singles = sorted((token for token in vocabulary if len(token) == 1), key=lambda c: (pieces[c], c))
    letters: list[tuple[str, list[int]]] = []
    marks: list[tuple[str, list[int]]] = []
    for character in [*singles, "\n"]:
        kind = letters if character.isalnum() else marks
        if len(kind) >= _ANCHORS:
            continue
        one, two = _encode([character, character * 2], tokenizer)
        said = [text.strip(" ") for text in tokenizer.batch_decode([one, two])]
        # Letters that are words of their own (Chinese ones in BERT) do not continue a word.
        if not one or said[0] != character or (kind is letters and said[1] != character * 2):
            continue
        kind.append((character, one))
    drops_blanks = False
    if letters or marks:
        anchor, ids = (*letters, *marks)[0]
        drops_blanks = _encode([anchor + " "], tokenizer)[0] == ids
    return _Rule(False, drops_blanks, tuple(letters), tuple(marks))
