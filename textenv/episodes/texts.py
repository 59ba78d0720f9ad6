"""Token ids as texts, split where the response begins. Shape letters: B episodes.

Most tokenizers decode a token differently at the start of a text: SentencePiece drops its space, WordPiece
shows the prefix of a continued word, and separate bytes of one character cannot be decoded. So a response is
never decoded alone: prompt text + completion text is the decoded text of all tokens.
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
    """Decode B texts and split them after their prompts.

    Args:
        ids: B lists, prompt then response, without padding.
        prompt_lengths: number of prompt tokens of each.
        tokenizer: the tokenizer of the ids; its own decode settings are used.
        skip_special_tokens: omit EOS and other special tokens.

    Returns:
        B pairs (prompt, completion) whose sum is the decoded row. If the end of the prompt is decoded
        differently with the response (such as a character whose last byte is in the response), this end
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
