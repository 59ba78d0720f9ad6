"""Callbacks: every hook is called, stopping and best checkpoints follow the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from textenv.agents.base.callbacks import BestCheckpoint, Callback, EarlyStop, make_callbacks

AGENT: Any = SimpleNamespace(run_dir=None)


def _evaluation(**metrics: float) -> Any:
    return SimpleNamespace(metrics={name.replace("__", "/"): value for name, value in metrics.items()})


class Noting(Callback):
    """Notes the hooks that are called."""

    def __init__(self, notes: list[str], stop: bool | None = None) -> None:
        self.notes, self.stop = notes, stop

    def on_start(self, agent: Any) -> None:
        self.notes.append("start")

    def on_iteration(self, agent: Any, metrics: Any) -> bool | None:
        self.notes.append(f"iteration {metrics['loss']}")
        return self.stop

    def on_evaluation(self, agent: Any, evaluation: Any) -> None:
        self.notes.append("evaluation")

    def on_checkpoint(self, agent: Any, path: Path) -> None:
        self.notes.append(f"checkpoint {path}")

    def on_end(self, agent: Any, result: Any) -> None:
        self.notes.append("end")


def test_all_are_called_in_order_even_if_one_stops() -> None:
    notes: list[str] = []
    note: Any = lambda agent, metrics: notes.append("f")  # noqa: E731
    callbacks = make_callbacks([Noting(notes, stop=True), Noting(notes), note])
    callbacks.on_start(AGENT)
    assert callbacks.on_iteration(AGENT, {"loss": 1.0}) is True
    callbacks.on_evaluation(AGENT, _evaluation())
    callbacks.on_checkpoint(AGENT, Path("x"))
    callbacks.on_end(AGENT, None)  # type: ignore[arg-type]
    assert notes == [
        *["start"] * 2,
        *["iteration 1.0"] * 2,
        "f",
        *["evaluation"] * 2,
        *["checkpoint x"] * 2,
        *["end"] * 2,
    ]


def test_none_means_go_on_and_other_values_are_refused() -> None:
    assert make_callbacks([Noting([])]).on_iteration(AGENT, {"loss": 1.0}) is False
    wrong = make_callbacks([lambda agent, metrics: metrics["loss"]])
    with pytest.raises(TypeError, match=r"must return True, False or None, got 1\.0"):
        wrong.on_iteration(AGENT, {"loss": 1.0})


@pytest.mark.parametrize("item", [3, "stop", EarlyStop])
def test_what_is_no_callback_is_refused(item: Any) -> None:
    with pytest.raises(TypeError, match="a callback must be a Callback or a function"):
        make_callbacks([item])


def _run(stop: EarlyStop, values: list[float | None]) -> int | None:
    """Index of the row that ended the training."""
    for i, value in enumerate(values):
        if stop.on_iteration(AGENT, {} if value is None else {"m": value}):
            return i
    return None


@pytest.mark.parametrize(
    ("kwargs", "values", "expected"),
    [
        ({"patience": 2}, [1, 2, 2, 3, 3, 3], 5),
        ({"patience": 2, "mode": "min"}, [3, 2, 2.5, 1, 1, 1], 5),
        ({"patience": 2}, [1, None, None, None, 0, None, 0], 6),
        ({"patience": 2, "min_delta": 0.5}, [1, 1.4, 1.5, 9], 2),
        ({"patience": 2}, [1, math.nan, math.nan], 2),
        ({"patience": 1}, [math.nan], 0),
        ({"patience": 9, "threshold": 2.0}, [1, 2, 3], 1),
        ({"patience": 9, "threshold": 0.5, "mode": "min"}, [1, 0.7, 0.5], 2),
        ({"patience": 3}, [1, 2, 3], None),
    ],
)
def test_early_stop(kwargs: dict[str, Any], values: list[float | None], expected: int | None) -> None:
    assert _run(EarlyStop("m", **kwargs), values) == expected


def test_early_stop_goes_on_where_the_saved_run_stood() -> None:
    values: list[float | None] = [1, 3, 2, 2, 2, 2]
    for cut in range(1, 5):
        first, second = EarlyStop("m", patience=3), EarlyStop("m", patience=3)
        assert _run(first, values[:cut]) is None
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        assert _run(second, values[cut:]) == 4 - cut
    json.dumps(EarlyStop("m").state_dict(), allow_nan=False)


def test_early_stop_says_when_its_metric_never_came() -> None:
    stop = EarlyStop("eval/return/men")
    stop.on_iteration(AGENT, {"eval/return/mean": 1.0})
    result: Any = SimpleNamespace(history=[{"eval/return/mean": 1.0, "loss": 1.0}])
    message = "waited for 'eval/return/men', which never came; known: eval/return/mean"
    with pytest.warns(UserWarning, match=message):
        stop.on_end(AGENT, result)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patience": 0}, "patience must be >= 1, got 0"),
        ({"min_delta": -1.0}, "min_delta must be >= 0, got -1.0"),
        ({"mode": "most"}, "mode must be one of 'max', 'min', got 'most'"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyStop("m", **kwargs)


def test_best_checkpoint_saves_only_what_is_better(tmp_path: Path) -> None:
    saved: list[Path] = []
    agent: Any = SimpleNamespace(run_dir=tmp_path, save=saved.append)
    best = BestCheckpoint()
    best.on_start(agent)
    for value in (1.0, 0.5, 1.0, math.nan, 2.0):
        best.on_evaluation(agent, _evaluation(return__mean=value))
    assert saved == [tmp_path / "best"] * 2
    again = BestCheckpoint(mode="max")
    again.load_state_dict(json.loads(json.dumps(best.state_dict())))
    again.on_start(agent)
    again.on_evaluation(agent, _evaluation(return__mean=1.5))
    assert len(saved) == 2


def test_best_checkpoint_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="needs folder= or an agent with a run_dir"):
        BestCheckpoint().on_start(AGENT)
    with pytest.raises(ValueError, match="unknown metric 'return/men'; known: return/mean"):
        BestCheckpoint("return/men", folder="x").on_evaluation(AGENT, _evaluation(return__mean=1.0))


def test_the_state_of_all_round_trips_and_must_fit() -> None:
    callbacks = make_callbacks([EarlyStop("m"), BestCheckpoint(), print])
    callbacks[0].on_iteration(AGENT, {"m": 2.0})
    state = json.loads(json.dumps(callbacks.state_dict()))
    fresh = make_callbacks([print, EarlyStop("m"), BestCheckpoint()])  # stateless ones come and go
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
    with pytest.raises(ValueError, match="callbacks with a state must be those of the saved run"):
        make_callbacks([EarlyStop("m")]).load_state_dict(state)
