"""The scaling benchmark's pieces on tiny sizes: that they measure what they say."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import scaling
from benchmarks.models import ModelShape, language_model

TINY = ModelShape(layers=1, width=16, heads=2, vocab=64)


def test_a_decoding_step_reads_weights_and_caches() -> None:
    # 12 d^2 weights a layer and the head; keys and values of 3 rows of 10 tokens; 4 bytes each.
    expected = 4 * (2 * 12 * 16**2 + 64 * 16 + 2 * 2 * 16 * 3 * 10)
    shape = ModelShape(layers=2, width=16, heads=2, vocab=64)
    assert scaling.step_bytes(shape, rows=3, length=10, width=4) == expected
    matrices = sum(p.numel() for p in language_model(shape).transformer.h.parameters() if p.dim() == 2)
    assert matrices == 2 * 12 * 16**2


def test_limits_are_rates() -> None:
    found = scaling.limits("cpu", torch.float32, size=64)
    assert set(found) == {"bandwidth", "matmul_flops"} and min(found.values()) > 0


def test_one_device() -> None:
    case = scaling.make_case(TINY, rows=4, episodes=8, new_tokens=4)
    found = scaling.on_device(case, "cpu", {"bandwidth": 1e9, "matmul_flops": 1e9})
    assert found["vocab"] == 64 and found["peak_gb"] is None
    assert found["decode_tokens_s"] > 0 and found["share_of_bandwidth"] > 0 and found["share_of_matmul"] > 0
    assert sum(found[f"share_{part}"] for part in scaling.PARTS) == pytest.approx(1.0)


def test_over_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    case = scaling.make_case(TINY, rows=4, episodes=8, new_tokens=4)
    rows = scaling.over_processes(case, [2], 1)
    assert rows[0]["processes"] == 2 and all(rows[0][name] > 0 for name in scaling.RATES)
    scaling.report({"processes": rows, "episodes": 8, "device": "it needs a GPU and this machine has none"})
    assert "skipped, it needs a GPU" in capsys.readouterr().out
    json.dumps(rows)
