"""What the tests of the benchmarks share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.forked_python import PYTHON


@pytest.fixture
def forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked from a process that has imported the libraries."""
    monkeypatch.setattr(sys, "executable", str(PYTHON.interpreter(tmp_path)))
