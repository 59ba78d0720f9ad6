"""Saving a tokenizer beside a model, and whether transformers reads the same one back."""

from __future__ import annotations

import os
import warnings
from typing import Any
from weakref import WeakSet

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from textenv.modeling.pretrained import load_pretrained

_compared: WeakSet[PreTrainedTokenizerBase] = WeakSet()
"""Tokenizers that were read back once; every checkpoint of a run saves the same one."""
_SAMPLED = 64
"""Tokens whose text is tokenised by both."""


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Write the tokenizer into a folder that already holds the model's config.

    For some model types transformers ignores the class that was saved and takes the model's own. The first
    save of a tokenizer is therefore read back, and some texts are tokenised by both.

    Warns:
        UserWarning: if ``AutoTokenizer`` reads a tokenizer that gives other ids.
    """
    tokenizer.save_pretrained(folder)
    if tokenizer in _compared:
        return
    _compared.add(tokenizer)
    try:
        loaded = load_pretrained(AutoTokenizer, folder, what="tokenizer")
    except Exception as error:  # transformers raises many types; the files are written
        warnings.warn(
            f"AutoTokenizer cannot read the tokenizer in {os.fspath(folder)}: {error}", stacklevel=2
        )
        return
    own = type(tokenizer).__name__
    for text in _samples(tokenizer):
        saved_ids, loaded_ids = _ids(tokenizer, text), _ids(loaded, text)
        if saved_ids != loaded_ids:
            warnings.warn(
                f"AutoTokenizer reads the saved {own} as a {type(loaded).__name__}, for the model beside it "
                f"is of another type. It gives other ids: {text!r} has {saved_ids} and becomes {loaded_ids}; "
                f"load it with {own}.from_pretrained",
                stacklevel=2,
            )
            return


def _samples(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A plain sentence, and the text of tokens from all over the vocabulary."""
    size = len(tokenizer)
    ids = sorted({i * size // _SAMPLED for i in range(_SAMPLED)} - set(tokenizer.all_special_ids))
    return ["Hello the dog: 42", *tokenizer.batch_decode([ids, *([i] for i in ids[:8])])]


def _ids(tokenizer: Any, text: str) -> Any:
    try:
        return list(tokenizer(text)["input_ids"])
    except Exception as error:  # a text that the vocabulary cannot write
        return type(error).__name__
