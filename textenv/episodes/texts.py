"""Token ids as texts, split where the response begins. Shape letters: B episodes.

Most tokenizers read a token differently at the beginning of a text: SentencePiece kinds drop its blank,
WordPiece shows the prefix of a continued word, and bytes of one character that are decoded apart are no
character. So a response is never decoded alone: prompt text + completion text is what the tokenizer makes of
all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def split_texts(
    ids: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    skip_special_tokens: bool = True,
) -> list[tuple[str, str]]:
    """Decode B texts and split them behind their prompts.

    Args:
        ids: B lists, prompt then response, without padding.
        prompt_lengths: B numbers of prompt tokens.
        tokenizer: that the ids belong to; its own decode settings hold.
        skip_special_tokens: leave EOS and its kin out.

    Returns:
        B pairs (prompt, completion) whose sum is the decoded row. Where the end of the prompt reads
        differently once the response follows (a character whose last byte is in the response, say), that end
        belongs to the completion.

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> split_texts([[2, 0, 1]], [1], letter_tokenizer("abc"))
        [('c', 'ab')]
    """
    rows = [list(row) for row in ids]
    # Episodes of a group share their prompt, which is decoded once.
    prompts: dict[tuple[int, ...], int] = {}
    place = [
        prompts.setdefault(tuple(row[:n]), len(prompts)) for row, n in zip(rows, prompt_lengths, strict=True)
    ]
    decoded = tokenizer.batch_decode(
        [*(list(prompt) for prompt in prompts), *rows], skip_special_tokens=skip_special_tokens
    )
    alone, whole = decoded[: len(prompts)], decoded[len(prompts) :]
    return [_split(alone[i], text) for i, text in zip(place, whole, strict=True)]


def _split(prompt: str, text: str) -> tuple[str, str]:
    if not text.startswith(prompt):
        pairs = enumerate(zip(prompt, text, strict=False))
        prompt = prompt[: next((i for i, (a, b) in pairs if a != b), len(text))]
    return prompt, text[len(prompt) :]
