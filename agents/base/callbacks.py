"""Callbacks: code that runs at fixed points of a training run. Two come with the library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from textenv.agents.base.result import TrainResult
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.utils.names import nearest


class RunningAgent(Protocol):
    """The part of an agent that a callback may rely on."""

    config: Any
    """Settings."""
    policy: Any
    """The policy that is trained."""
    reference: Any
    """The reference policy, None without one."""
    tokenizer: Any
    """The tokenizer, None without one."""
    envs: Any
    """Training environment, None for offline agents."""
    eval_envs: Any
    """Evaluation environment, None without one."""
    run_dir: Path | None
    """Folder of the run, None if nothing is kept."""
    last_batch: Any
    """The ``TrainingBatch`` of the latest iteration (online agents)."""
    iteration: int
    """The iteration that is running, counted from 1."""
    optimizer_steps: int
    """Optimizer steps so far."""
    episodes_seen: int
    """Episodes generated (online) or visited (offline) so far."""
    env_tokens: int
    """Response tokens generated so far, without evaluations."""
    gradient_tokens: int
    """Tokens, prompts included, of the rows of all optimizer steps so far."""
    reward_calls: int
    """Episodes for which rewards were computed so far, without evaluations."""

    def planned_iterations(self) -> int:
        """Iterations of the whole run."""

    def evaluate(self, envs: Any = None, episodes: int | None = None, **options: Any) -> Any:
        """Generate episodes and measure them."""

    def first_evaluation(self) -> Any:
        """The evaluation before training, made once."""

    def save(self, path: Path | str) -> None:
        """Write the agent into a folder."""


class Callback:
    """Base class of callbacks; each hook does nothing unless it is overridden.

    In an iteration the order is: collect and update, ``wants_evaluation``, ``on_evaluation`` (if it is time
    to evaluate), ``on_iteration``, logging, ``on_checkpoint`` (if it is time to save). A checkpoint therefore
    holds the callbacks' state at the end of its iteration.
    """

    def on_start(self, agent: RunningAgent) -> None:
        """Called once before the first iteration (again after a resume)."""

    def wants_evaluation(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """Called at the end of every iteration; True evaluates now, independently of ``eval_every``."""
        return False

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool | None:
        """Called after every iteration with its row of metrics; True ends the training.

        An evaluation made in this iteration is among the metrics, as ``eval/NAME``.
        """

    def on_evaluation(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Called after every evaluation."""

    def on_checkpoint(self, agent: RunningAgent, path: Path) -> None:
        """Called after a checkpoint was written to the folder ``path``."""

    def on_end(self, agent: RunningAgent, result: TrainResult[Any]) -> None:
        """Called once at the end of ``learn``, unless it raised an error."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""


class _Function(Callback):
    """A plain function ``(agent, metrics) -> bool | None`` as ``on_iteration``."""

    def __init__(self, function: Callable[[RunningAgent, Mapping[str, float]], bool | None]) -> None:
        self.function = function

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool | None:
        return self.function(agent, metrics)


class Callbacks(list[Callback]):
    """The callbacks of a run, called in order."""

    def on_start(self, agent: RunningAgent) -> None:
        """Tell every callback."""
        for callback in self:
            callback.on_start(agent)

    def wants_evaluation(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """Whether any callback wants an evaluation now; all are called."""
        return any([callback.wants_evaluation(agent, metrics) for callback in self])

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """Whether any callback ends the training; all are called.

        Raises:
            TypeError: if a callback returns something other than True, False or None.
        """
        stop = False
        for callback in self:
            said = callback.on_iteration(agent, metrics)
            if said is not None and not isinstance(said, bool):
                raise TypeError(
                    f"on_iteration of {_name(callback)} must return True, False or None, got {said!r}"
                )
            stop = stop or bool(said)
        return stop

    def on_evaluation(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Tell every callback."""
        for callback in self:
            callback.on_evaluation(agent, evaluation)

    def on_checkpoint(self, agent: RunningAgent, path: Path) -> None:
        """Tell every callback."""
        for callback in self:
            callback.on_checkpoint(agent, path)

    def on_end(self, agent: RunningAgent, result: TrainResult[Any]) -> None:
        """Tell every callback."""
        for callback in self:
            callback.on_end(agent, result)

    def state_dict(self) -> list[dict[str, Any]]:
        """Names and states (JSON values) of the callbacks that have a state, in order."""
        states = [(_name(callback), callback.state_dict()) for callback in self]
        return [{"callback": name, "state": state} for name, state in states if state]

    def without_added(self, states: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Saved states without that of ``BestCheckpoint``, which ``train`` adds, if there is none here."""
        added = () if any(type(callback) is BestCheckpoint for callback in self) else ("BestCheckpoint",)
        return [state for state in states if state["callback"] not in added]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Restore what ``state_dict`` gave.

        Raises:
            ValueError: if the callbacks with a state are not those of the saved run.
        """
        states = list(states)
        stateful = [callback for callback in self if callback.state_dict()]
        saved, own = [state["callback"] for state in states], [_name(callback) for callback in stateful]
        if saved != own:
            raise ValueError(f"callbacks with a state must be those of the saved run, {saved}, got {own}")
        for callback, state in zip(stateful, states, strict=True):
            callback.load_state_dict(state["state"])


def make_callbacks(items: Iterable[Callback | Callable[..., bool | None]] = ()) -> Callbacks:
    """The callbacks of a run; a function ``(agent, metrics)`` becomes an ``on_iteration`` hook.

    Raises:
        TypeError: if an item is neither.
    """
    callbacks = Callbacks()
    for item in items:
        if isinstance(item, Callback):
            callbacks.append(item)
        elif callable(item) and not isinstance(item, type):
            callbacks.append(_Function(item))
        else:
            raise TypeError(f"a callback must be a Callback or a function (agent, metrics), got {item!r}")
    return callbacks


class EarlyStop(Callback):
    """Ends the training when a metric no longer improves, or reaches a threshold.

    Iterations without the metric (for example between two evaluations) are ignored. A NaN is no improvement.

    Args:
        metric: name in the logged row, such as ``"eval/return/mean"``.
        patience: the training ends after this many values in a row without an improvement.
        min_delta: a value improves on the best if the difference is larger than this.
        mode: "max" if more is better, "min" if less is.
        threshold: the training ends as soon as the metric reaches this value; None for no threshold.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        metric: str,
        *,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["max", "min"] = "max",
        threshold: float | None = None,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience must be >= 1, got {patience}")
        if min_delta < 0:
            raise ValueError(f"min_delta must be >= 0, got {min_delta}")
        self.metric, self.patience, self.min_delta, self.threshold = metric, patience, min_delta, threshold
        self.sign = _sign(mode)
        self.best = -math.inf
        self.waited = 0
        self._seen = False

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """Compare the metric with the best so far."""
        if self.metric not in metrics:
            return False
        self._seen = True
        value = self.sign * metrics[self.metric]
        if self.threshold is not None and value >= self.sign * self.threshold:
            return True
        if value > self.best + self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def on_end(self, agent: RunningAgent, result: TrainResult[Any]) -> None:
        """Warn if the metric never appeared: its name is misspelt, or nothing was evaluated."""
        known = {name for row in result.history for name in row}
        if not self._seen and self.metric not in known:  # a resumed run may have seen it before
            warnings.warn(
                f"EarlyStop waited for {self.metric!r}, which never came; {nearest(self.metric, known)}",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Best value so far, and the number of values since then."""
        return {"best": None if self.best == -math.inf else self.sign * self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.best = -math.inf if state["best"] is None else self.sign * state["best"]
        self.waited = state["waited"]


class BestCheckpoint(Callback):
    """Keeps the best agent by an evaluation metric in the folder ``best`` of the run.

    Args:
        metric: name in ``Evaluation.metrics``.
        mode: "max" if more is better, "min" if less is.
        folder: where to save; None for ``best`` in the run's folder.

    Raises:
        ValueError: if ``mode`` is unknown; at an evaluation, if it lacks the metric; at the start, if neither
            ``folder`` nor the run's folder is given.
    """

    def __init__(
        self,
        metric: str = "return/mean",
        *,
        mode: Literal["max", "min"] = "max",
        folder: Path | str | None = None,
    ) -> None:
        self.metric = metric
        self.sign = _sign(mode)
        self.folder = None if folder is None else Path(folder)
        self.best: float | None = None

    def on_start(self, agent: RunningAgent) -> None:
        """Find the folder."""
        if self.folder is None:
            if agent.run_dir is None:
                raise ValueError("BestCheckpoint needs folder= or an agent with a run_dir, got neither")
            self.folder = Path(agent.run_dir) / "best"

    def on_evaluation(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Save the agent if it is the best so far; a NaN never is."""
        if self.metric not in evaluation.metrics:
            raise ValueError(f"unknown metric {self.metric!r}; {nearest(self.metric, evaluation.metrics)}")
        value = evaluation.metrics[self.metric]
        if math.isnan(value) or (self.best is not None and self.sign * value <= self.sign * self.best):
            return
        assert self.folder is not None
        agent.save(self.folder)
        self.best = value

    def state_dict(self) -> dict[str, Any]:
        """Best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.best = state["best"]


def _sign(mode: str) -> int:
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be one of 'max', 'min', got {mode!r}")
    return 1 if mode == "max" else -1


def _name(callback: Callback) -> str:
    if isinstance(callback, _Function):
        return getattr(callback.function, "__qualname__", type(callback.function).__name__)
    return type(callback).__name__
