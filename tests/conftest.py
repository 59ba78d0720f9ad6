"""What every test runs under: offline, one torch thread, caches of its own."""

from __future__ import annotations

import os
import secrets
import tempfile

# Read by the libraries when they are imported, so these come before the imports below.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="textenv-tests-datasets-")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="textenv-tests-modules-")
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# Without one, Ray writes a token for its clusters into the user's home.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)

# The same examples at every run, and no deadline: CI machines differ in speed.
hypothesis.settings.register_profile("textenv", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("textenv")


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that name no device are on the CPU, also on a machine with a GPU."""
    from textenv.agents.distributed import devices

    monkeypatch.setattr(devices, "default_device", lambda: "cpu")


def pytest_unconfigure() -> None:
    """Remove this process's caches (with workers there is one of each for each)."""
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _no_reports() -> None:
    """Runs end without a report, whose plots take seconds; tests of reports switch them on."""
    from textenv.agents.reports import recorder

    recorder.enabled = False


@pytest.fixture(autouse=True)
def _global_random_state() -> Iterator[None]:
    """Start every test from the same global seed, so that no test depends on those before it."""
    torch.manual_seed(0)
    yield


_CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, <pad>, <s> and </s>, and a chat template; it adds no special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    base = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    base.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=_CHAT_TEMPLATE,
    )
