"""Prompts and completions as token ids, with the boundary where a policy's response starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textenv.prompts.continuations import encode_continuations
from textenv.prompts.prompt_set import encode_prompts
from textenv.prompts.token_ids import check_texts, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_pairs(
    prompts: Sequence[str],
    completions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    append_eos: bool = True,
    max_length: int | None = None,
) -> tuple[list[list[int]], list[list[int]], list[bool]]:
    """Tokenise B prompts and completions separately, so that the boundary is exact.

    Together the ids decode to prompt + completion; see ``textenv.prompts.continuations``. A BOS at the start
    of a completion is dropped, unless BOS is also EOS. After an empty prompt, which is BOS, a text that
    starts with BOS gets no second one.

    Args:
        prompts: B strings; an empty one becomes BOS (or EOS where the tokenizer has no BOS).
        completions: B strings.
        tokenizer: a transformers tokenizer.
        append_eos: end every completion with EOS, unless its text already does.
        max_length: largest number of tokens of a pair; a longer one loses the end of its completion.

    Returns:
        (B prompts, B responses, B bools: whether the response was cut).

    Raises:
        TypeError: if a prompt or completion is not a string.
        ValueError: if the counts differ, the tokenizer lacks the token needed, or a prompt alone fills
            max_length.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"completions must have as many rows as prompts ({len(prompts)}), got {len(completions)}"
        )
    for name, texts in (("prompts", prompts), ("completions", completions)):
        check_texts(name, texts)
    eos = eos_to_append(tokenizer) if append_eos else None
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompt_ids = encode_prompts(prompts, tokenizer)
    try:
        encoded = encode_continuations(prompts, completions, tokenizer)
    except Exception:
        token_ids(completions, tokenizer, special=False, name="completions")  # names the one that can't be
        raise
    response_ids, cut = [], []
    for i, (prompt, response) in enumerate(zip(prompt_ids, encoded, strict=True)):
        if not prompt:
            if start is None:
                raise ValueError(
                    f"prompts[{i}] is empty and the tokenizer has neither bos_token nor eos_token"
                )
            prompt.append(start)
            doubled = len(response) > 1 and response[0] == start  # an EOS alone is an empty completion
        else:
            doubled = response[:1] == [tokenizer.bos_token_id] != [tokenizer.eos_token_id]
        if doubled:
            response = response[1:]
        ended, was_cut = end_response(response, len(prompt), eos, max_length, f"prompts[{i}]")
        response_ids.append(ended)
        cut.append(was_cut)
    return prompt_ids, response_ids, cut


def bos_once(ids: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Remove the second BOS of texts that start with BOS, if the tokenizer adds one, too.

    Args:
        ids: B lists, encoded with special tokens.
        tokenizer: their tokenizer.
    """
    bos = [tokenizer.bos_token_id]
    return [row[1:] if row[:1] == row[1:2] == bos else row for row in ids]


def eos_to_append(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of EOS.

    Raises:
        ValueError: if the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("append_eos needs a tokenizer with an eos_token, got one without")
    return int(tokenizer.eos_token_id)


def end_response(
    response: Sequence[int], prompt_length: int, eos: int | None, max_length: int | None, name: str
) -> tuple[list[int], bool]:
    """End a response with EOS and truncate it to ``max_length``.

    Args:
        response: token ids.
        prompt_length: tokens before it.
        eos: id to append if the response does not end with it, or None.
        max_length: largest number of tokens of prompt and response together.
        name: of the prompt, for the message.

    Returns:
        (ids, whether some were cut off).

    Raises:
        ValueError: if the prompt leaves no room for a response.

    >>> end_response([7, 8], 2, 0, None, "prompt"), end_response([7, 8], 2, 0, 4, "prompt")
    (([7, 8, 0], False), ([7, 8], True))
    """
    ids = list(response)
    if eos is not None and ids[-1:] != [eos]:
        ids.append(eos)
    if max_length is None or prompt_length + len(ids) <= max_length:
        return ids, False
    if prompt_length >= max_length:
        raise ValueError(
            f"{name} has {prompt_length} tokens, which leaves no room for a completion "
            f"in max_length={max_length}"
        )
    return ids[: max_length - prompt_length], True
