"""What every test runs under: offline, one torch thread, caches of its own."""

from __future__ import annotations

import os
import tempfile

# Read by the libraries when they are imported, so these come before the imports below.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="textenv-tests-datasets-")
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

import shutil
from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples at every run, and no deadline: CI machines differ in speed.
hypothesis.settings.register_profile("textenv", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("textenv")


@pytest.fixture(scope="session", autouse=True)
def _own_caches() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _global_random_state() -> Iterator[None]:
    """Start every test from the same global seed, so that no test depends on those before it."""
    torch.manual_seed(0)
    yield
