"""Tokenizers of letters and models of a few hundred weights: what most tests run on."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerBase

from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2


@cache
def letters(alphabet: str = "abcd") -> PreTrainedTokenizerBase:
    """The tokenizer of these letters, shared: a test that changes one makes it by ``letter_tokenizer``."""
    return letter_tokenizer(alphabet)


TOKENIZER = letters()


def tiny(
    tokenizer: PreTrainedTokenizerBase = TOKENIZER,
    *,
    layers: int = 1,
    width: int = 8,
    heads: int = 2,
    positions: int = 32,
    **changes: Any,
) -> GPT2Config:
    """A GPT-2 config without dropout; ``changes`` are fields of ``GPT2Config``."""
    config = small_gpt2(tokenizer, layers=layers, width=width, heads=heads, positions=positions)
    return GPT2Config(**{**config.to_dict(), **changes}) if changes else config


def save_tiny(folder: Path, tokenizer: PreTrainedTokenizerBase = TOKENIZER, **changes: Any) -> Path:
    """Save a model of ``tiny``'s config and its tokenizer, as transformers does; returns the folder."""
    AutoModelForCausalLM.from_config(tiny(tokenizer, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
