"""The runs of a study: one for each agent, KL coefficient, task and seed, and the baselines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textenv.agents.base.registry import get_agent
from textenv.agents.settings.base import Config
from textenv.agents.study.cells import agent_setup, task_setup
from textenv.agents.study.config import START, AgentSetup, StudyConfig
from textenv.utils.json_files import read_object
from textenv.utils.redaction import masked

RESULT = "result.json"
"""File of a run's result, written atomically at the end, also after a failure."""
IDENTITY = "identity.json"
"""What a run was made from."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a study; the label ``start`` stands for the anchors of a task and seed."""

    label: str
    """The agent's label."""
    task: str
    """The task's label."""
    seed: int
    """The seed."""
    kl_coef: float | None = None
    """KL coefficient; None is the agent's own."""

    @property
    def is_anchor(self) -> bool:
        """Whether it measures the start rather than an agent."""
        return self.label == START

    @property
    def arm(self) -> str:
        """The agent and its coefficient, which runs of other seeds share.

        >>> RunSpec(label="ppo", task="reviews", seed=0, kl_coef=0.05).arm
        'ppo, KL 0.05'
        """
        return self.label if self.kl_coef is None else f"{self.label}, KL {self.kl_coef:g}"

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return f"{self.arm} on {self.task}, seed {self.seed}"

    def folder(self, study: Path) -> Path:
        """Its folder in a study's."""
        coef = () if self.kl_coef is None else (f"kl-{self.kl_coef:g}",)
        return study.joinpath("runs", self.task, self.label, *coef, f"seed-{self.seed}")

    def result(self, study: Path) -> dict[str, Any] | None:
        """Its result, None as long as there is none."""
        path = self.folder(study) / RESULT
        return read_result(path) if path.exists() else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def read_result(path: Path) -> dict[str, Any]:
    """A run's result, checked for its form.

    Raises:
        ValueError: if the file is damaged.
    """
    found = read_object(path, {"status": str})
    if found["status"] == "done":
        read_object(path, {"figures": dict})
    elif found["status"] == "failed":
        read_object(path, {"error": str})
    else:
        raise ValueError(f"{path} is damaged, status must be 'done' or 'failed', got {found['status']!r}")
    return found


def plan(config: StudyConfig) -> Iterator[RunSpec]:
    """Every run, in the order of running: anchors, then seed by seed, so that a part is a smaller study."""
    for seed in config.seed_list:
        for task in config.tasks:
            yield RunSpec(label=START, task=task, seed=seed)
    for seed in config.seed_list:
        for task in config.tasks:
            for label in config.agents:
                for coef in config.coefs(label):
                    yield RunSpec(label=label, task=task, seed=seed, kl_coef=coef)


def identity(config: StudyConfig, spec: RunSpec) -> dict[str, Any]:
    """Everything that a run's numbers depend on, as JSON values. Other values are another run.

    Secrets are masked: a new API key does not make another run.
    """
    task = given(task_setup(config, spec.task))
    made: dict[str, Any] = {"task": task, "eval_episodes": config.eval_episodes, "threads": config.threads}
    if spec.is_anchor:
        made |= {"best_of": sorted(config.best_of), "best_of_prompts": config.best_of_prompts}
    else:
        agent = given(agent_setup(config, spec.label, spec.task))
        if agent.get("start") is True:  # as it is unless said otherwise
            del agent["start"]
        made |= {"agent": agent, "budget": given(config.budget)}
        made["evaluations"] = config.evaluations
    return json.loads(json.dumps(masked({**spec.to_dict(), **made})))


def given(config: Config) -> dict[str, Any]:
    """The settings that differ from their defaults, so that new settings do not change an identity.

    >>> from textenv.agents.study.config import Budget
    >>> given(Budget(seconds=2.0))
    {'seconds': 2.0}
    """
    own, default = config.to_dict(), type(config)().to_dict()
    inner = {name: getattr(config, name) for name in own if isinstance(getattr(config, name), Config)}
    changed = {name: value for name, value in own.items() if value != default[name]}
    return {name: given(inner[name]) if name in inner else value for name, value in changed.items()}


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two identities differ, by name with dots.

    >>> differences({"task": {"num_envs": 8}, "seed": 0}, {"task": {}, "seed": 0})
    ['task.num_envs: 8, now None']
    """
    found = []
    for name in sorted({*one, *other}):
        old, new = one.get(name), other.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old!r}, now {new!r}")
    return found


def without_idle(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without those of the agent's settings that have no effect, which older studies may hold.

    >>> made_from = {"agent": {"agent": "grpo", "settings": {"gamma": 0.9, "epochs": 2}}, "kl_coef": None}
    >>> without_idle(made_from)["agent"]["settings"]
    {'epochs': 2}
    """
    agent = dict(made_from.get("agent") or {})
    settings = agent.pop("settings", {})
    try:
        setup = AgentSetup(**agent)
        name, coef = setup.kl_field(), made_from.get("kl_coef")
        beside = {} if coef is None or name is None else {name: coef}
        idle = get_agent(setup.agent or "").config_class.from_saved({**settings, **beside}).idle()
    except (TypeError, ValueError):  # no agent, or one or a setting that is not there any more
        return dict(made_from)
    kept = _in_iterations({key: value for key, value in settings.items() if key not in idle})
    return {**made_from, "agent": {**agent, "settings": kept} if kept else agent}


def _in_iterations(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with a run's length in iterations, where it is given as episodes."""
    total, size = settings.get("total_episodes"), settings.get("episodes_per_iteration")
    if not total or not size:
        return settings
    return {**settings, "total_episodes": None, "iterations": total // size}
