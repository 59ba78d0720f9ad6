"""A saved tokenizer that transformers reads back as another one is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, Qwen2Config

from tests.helpers.tokenizer_families import bert, gemma, gpt_2, letters, llama_2, llama_3, qwen_2, t5
from textenv.agents.policies.tokenizer_files import save_tokenizer


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (llama_2, LlamaConfig),
        (llama_3, LlamaConfig),
        (qwen_2, Qwen2Config),
        (gpt_2, GPT2Config),
        (letters, GPT2Config),
        (gemma, LlamaConfig),
        (t5, LlamaConfig),
        (bert, GPT2Config),
    ],
)
def test_a_tokenizer_that_comes_back_as_it_was_is_saved_in_silence(
    make: Any, config: Any, tmp_path: Path
) -> None:
    config().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_tokenizer(make(), tmp_path)


def test_a_tokenizer_that_the_model_type_replaces_is_named_once(tmp_path: Path) -> None:
    Qwen2Config().save_pretrained(tmp_path)
    tokenizer = llama_2()
    with pytest.warns(UserWarning, match=r"reads the saved Llama\w* as a Qwen2\w*.* gives other ids"):
        save_tokenizer(tokenizer, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_tokenizer(tokenizer, tmp_path)
