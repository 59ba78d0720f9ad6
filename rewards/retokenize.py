"""Prompt and response as a text in another model's format and tokens. Shape letters: B episodes."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_template(template: Any) -> None:
    """Refuse anything but "chat" or a format string with {prompt} and {completion} alone.

    Raises:
        ValueError: if it is something else.
    """
    if template == "chat":
        return
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward-model: template must be a format string, got {template!r}: {error}"
        ) from error
    if "completion" not in fields or not fields <= {"prompt", "completion"}:
        raise ValueError(
            'reward-model: template must be "chat" or hold {completion} and maybe {prompt}, '
            f"got {template!r}"
        )


def load_tokenizer(tokenizer: Any, model: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer given, the one of that name, or the one saved with a model given by name; else None."""
    from transformers import AutoTokenizer

    if isinstance(tokenizer, str):
        return load_pretrained(AutoTokenizer, tokenizer, what="tokenizer")
    if tokenizer is not None:
        return tokenizer
    if not isinstance(model, str):
        return None
    folder = Path(model)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        return None
    return load_pretrained(AutoTokenizer, model, what="tokenizer")


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids."""
    if one is other:
        return True
    if len(one) != len(other) or one.get_vocab() != other.get_vocab():
        return False
    # The same vocabulary can still be used by another rule (merges, normalisation): try a text that both
    # know.
    sample = one.decode(list(range(min(len(one), 256))), skip_special_tokens=True)
    ids = [tokenizer(sample, add_special_tokens=False)["input_ids"] for tokenizer in (one, other)]
    return bool(ids[0] == ids[1])


def rendered_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    completions: list[str],
    *,
    template: str,
    append_eos: bool = False,
) -> list[list[int]]:
    """Render and tokenize.

    Args:
        tokenizer: the scoring model's.
        prompts: B texts.
        completions: B texts.
        template: "chat", or a format string with {prompt} and {completion}.
        append_eos: end each text by EOS.

    Returns:
        B lists of ids.

    Raises:
        ValueError: if the tokenizer has no chat template or no EOS and one is asked for.
    """
    pairs = list(zip(prompts, completions, strict=True))
    if template == "chat":
        if tokenizer.chat_template is None:
            raise ValueError('reward-model: template "chat" needs a tokenizer with a chat template')
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}],
                tokenize=False,
            )
            for prompt, completion in pairs
        ]
    else:
        texts = [template.format(prompt=prompt, completion=completion) for prompt, completion in pairs]
    ids: list[list[int]] = (
        tokenizer(texts, add_special_tokens=template != "chat")["input_ids"] if texts else []
    )
    if append_eos:
        if tokenizer.eos_token_id is None:
            raise ValueError("reward-model: append_eos needs a tokenizer with an eos_token")
        ids = [row if row[-1:] == [tokenizer.eos_token_id] else [*row, tokenizer.eos_token_id] for row in ids]
    return ids
