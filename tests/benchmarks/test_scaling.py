"""The scaling benchmark's pieces on tiny sizes: that they measure what they say."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import decoding, scaling
from benchmarks.models import ModelShape, language_model
from benchmarks.rollout import Workload

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


@pytest.mark.usefixtures("forked")
def test_over_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    case = scaling.make_case(TINY, rows=4, episodes=8, new_tokens=4)
    rows = scaling.over_processes(case, [2], 1)
    assert rows[0]["processes"] == 2 and all(rows[0][name] > 0 for name in scaling.RATES)
    scaling.report({"processes": rows, "episodes": 8, "device": scaling.NO_GPU})
    assert "skipped, it needs a GPU" in capsys.readouterr().out
    json.dumps(rows)


def test_a_rollout_reads_the_weights_at_every_step_and_its_caches() -> None:
    shape = ModelShape(layers=2, width=16, heads=2, vocab=64)
    # Two prompts of 5 tokens; responses of 1 and 3 tokens see 5 and 5 + 6 + 7 columns.
    found = decoding.decoded_bytes(shape, torch.tensor([1, 3]), prompt_tokens=5, steps=3, width=2)
    assert found == 2 * (3 * (2 * 12 * 16**2 + 64 * 16) + 2 * 2 * 16 * (5 + 18))


def test_decoding_against_generate_on_both_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    p = decoding.eos_probability(64, 128)
    assert sum(k * p * (1 - p) ** (k - 1) for k in range(1, 128)) + 128 * (1 - p) ** 127 == pytest.approx(64)
    options = {"device": "cpu", "dtype": torch.float32, "bandwidth": 1e9, "repeats": 1}
    found = decoding.both_workloads(TINY, rows=4, prompt_tokens=4, new_tokens=8, **options)
    assert list(found) == ["fixed 8 tokens", "ended, mean 4"]
    for row in found.values():
        assert row["ratio"] == row["decode_tokens_s"] / row["generate_tokens_s"] > 0
        assert row["share_of_bandwidth"] > 0 and row["peak_gb"] is None
    case = scaling.make_case(TINY, rows=4, episodes=8, new_tokens=4, prompt_tokens=8, dtype="bfloat16")
    limit = {"bandwidth": 1e9, "matmul_flops": 1e9}
    sizes = [scaling.on_device(case, "cpu", limit)]
    device = {"device": "cpu", "dtype": "bfloat16", "limits": limit, "decoding": found, "sizes": sizes}
    rates = dict.fromkeys(scaling.RATES, 1.0)
    scaling.report({"processes": [{"processes": 1, **rates}], "episodes": 8, "device": device})
    out = capsys.readouterr().out
    assert "fixed 8 tokens" in out and "PPO on cpu, bfloat16" in out


def test_the_steps_of_a_fixed_length_rollout_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many episodes as rows, refilled at once: twice the tokens of one."""
    work = Workload(
        shape=ModelShape(**{**TINY.__dict__, "positions": 12}),
        rows=4,
        episodes=8,
        max_new_tokens=8,
        prompt_tokens=4,
    )

    def note(shape: ModelShape, lengths: torch.Tensor, *, steps: int, **_: object) -> float:
        seen.append((int(lengths.sum()), steps))
        return 1.0

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(decoding, "decoded_bytes", note)
    decoding.against_generate(work, device="cpu", dtype=torch.float32, bandwidth=1.0, repeats=1)
    assert set(seen) == {(64, 16)}
