"""Settings of a comparison study: agents by label, tasks by label, seeds, KL coefficients, budget."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from textenv.agents.base.registry import get_config_class
from textenv.agents.settings.base import AgentConfig, Config
from textenv.agents.settings.env_options import EnvOptions
from textenv.agents.settings.offline import SFTConfig
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.agents.train_setup.task_settings import task_settings

C = TypeVar("C", bound=Config)
START = "start"
"""The label under which the policy that all agents begin with is measured."""
MOST_SEEDS = 10_000
"""Largest number of seeds."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")


@dataclass(frozen=True, kw_only=True)
class Budget(Config):
    """Limits of a run's cost. It stops after the iteration that reaches one of them, or at its own length.

    Tokens and calls are counted as in ``textenv.agents.base.agent.SPENT``; evaluations are free.
    """

    env_tokens: int | None = None
    """Tokens generated for training."""
    gradient_tokens: int | None = None
    """Tokens in all optimizer steps, with prompts."""
    reward_calls: int | None = None
    """Episodes scored by the rewards."""
    seconds: float | None = None
    """Seconds of rollout, scoring and update."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(env_tokens=">= 1", gradient_tokens=">= 1", reward_calls=">= 1", seconds="> 0")

    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        return {name: limit for name, limit in self.to_dict().items() if limit is not None}


@dataclass(frozen=True, kw_only=True)
class AgentSetup(Config):
    """An agent of a study."""

    agent: str | None = None
    """Name of a registered agent; None is the label."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the agent; the seed is set by the study."""
    start: bool | None = None
    """Start from the task's fine-tuned model; false starts from its small model with random weights. None is
    true if the study sets ``start`` for the task, or else what the task's settings say."""
    model: str | None = None
    """Hub id or folder of the initial model, instead of the task's."""
    dataset: str | None = None
    """Data of an offline agent: file, folder or hub id; None is the task's data."""
    kl_setting: str | None = None
    """Setting that receives the study's KL coefficients; None is kl_coef, if the agent has it."""

    def validate(self) -> None:
        """Check that start and model are not both given."""
        super().validate()
        if self.model is not None and self.start is False:
            raise ValueError(f"start must be true where a model is given, got false and {self.model!r}")
        if "seed" in self.settings:
            raise ValueError(f"settings must leave the seed to the study, got {self.settings['seed']!r}")

    def kl_field(self) -> str | None:
        """The setting that receives the study's KL coefficients; None if there is none."""
        known = [spec.name for spec in fields(get_config_class(self.agent or ""))]
        return self.kl_setting or ("kl_coef" if "kl_coef" in known else None)

    def config(self, seed: int, kl_coef: float | None = None, task: str | None = None) -> AgentConfig:
        """The agent's settings in one run.

        Args:
            seed: of the run.
            kl_coef: KL coefficient; None is the agent's own.
            task: the task whose settings count where none are given; None are the class's defaults.

        Raises:
            ValueError: if a setting is unknown or out of range.
            TypeError: if a setting does not have its type.
        """
        given = {**self.settings, "seed": seed}
        name = self.kl_field()
        if kl_coef is not None and name is not None:
            given[name] = kl_coef
        return task_settings(task, self.agent or "").fill(self.agent or "", given)


@dataclass(frozen=True, kw_only=True)
class TaskSetup(Config):
    """A task of a study; the same for all of its agents."""

    task: str | None = None
    """Name of a registered task; None is the label."""
    model: str | None = None
    """Hub id or folder of the initial model; None is the task's small model with random weights."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; None is that of the model or the task."""
    start: SFTConfig | None = None
    """Fine-tuning of the model on the task's demonstrations before the agents train. None: the task's small
    model is fine-tuned as the task's settings say, another model is not changed."""
    reward: Any = None
    """Reward of the agents: a reward spec or a list of them; None is the task's reward."""
    judge: Any = None
    """Reward spec for evaluation only, on which no agent is trained; None evaluates by the reward."""
    dataset: str | None = None
    """Data of offline agents and of the fine-tuning: file, folder or hub id; None is the task's data."""
    num_envs: int = 16
    """Texts generated in parallel."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """Options of the environment."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """Options of the policy around the model."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(num_envs=">= 1")
        for name in ("reward", "judge"):
            try:
                json.dumps(getattr(self, name))
            except TypeError as error:
                raise TypeError(
                    f"{name} must be plain values that name registered rewards, got {getattr(self, name)!r}"
                ) from error


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Config):
    """Settings of a study: every agent on every task with every seed and every KL coefficient."""

    title: str = "comparison of agents"
    """Heading of the report."""
    agents: dict[str, Any] = field(default_factory=dict)
    """Label -> settings of an agent (agent, settings, start, model, dataset, kl_setting)."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """Label -> settings of a task (task, model, start, reward, judge, dataset, num_envs, env, policy)."""
    task_settings: bool = True
    """Use the task's settings and fine-tuned start for each agent (``Task.settings``) where this file gives
    none; false uses the agents' defaults and random weights."""
    seeds: int | tuple[int, ...] = 5
    """Number of seeds (0 to n - 1), or a list of seeds. With fewer than 5 no winner is declared."""
    kl_coefs: tuple[float, ...] = ()
    """KL coefficients to run each agent with, if it has one; empty keeps the agents' settings."""
    budget: Budget = field(default_factory=Budget)
    """Limits of a run's cost."""
    evaluations: int = 10
    """Evaluations per run, evenly spaced; the last one is at the end."""
    eval_episodes: int = 256
    """Episodes per evaluation, always with the same validation prompts and sampling noise."""
    best_of: tuple[int, ...] = (2, 4, 8, 16)
    """Values of n for best-of-n sampling from the initial policy, as a baseline; [] is none."""
    best_of_prompts: int = 64
    """Prompts for best-of-n; each gets as many samples as the largest n."""
    kl_budgets: tuple[float, ...] = (1.0, 3.0, 10.0)
    """KL divergences from the initial policy, in nats, at which rewards are compared."""
    threads: int | None = 1
    """CPU threads per run; results depend on it in the last digits. None is torch's default."""
    keep_models: bool = False
    """Keep checkpoints and best models of finished runs; false keeps only the numbers."""

    def __post_init__(self) -> None:
        """Turn agents and tasks into their settings, then check."""
        for name, cls in (("agents", AgentSetup), ("tasks", TaskSetup)):
            given = getattr(self, name)
            if isinstance(given, Mapping):
                made = {label: _setup(cls, name, label, value) for label, value in given.items()}
                object.__setattr__(self, name, made)
        if isinstance(self.budget, Mapping):
            object.__setattr__(self, "budget", Budget.from_dict(self.budget))
        super().__post_init__()

    def validate(self) -> None:
        """Check the ranges, that there is something to compare, and every agent's settings."""
        super().validate()
        self.check(
            seeds=">= 0",
            kl_coefs=">= 0",
            evaluations=">= 1",
            eval_episodes=">= 2",
            best_of=">= 1",
            best_of_prompts=">= 1",
            kl_budgets="> 0",
            threads=">= 1",
        )
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise ValueError(f"seeds must be <= {MOST_SEEDS}, got {self.seeds}")
        lists = {
            "agents": self.agents,
            "tasks": self.tasks,
            "seeds": self.seed_list,
            "kl_coefs": self.kl_coefs,
        }
        for name, values in lists.items():
            if not values and name != "kl_coefs":
                example = {"agents": " (such as ppo: {})", "tasks": " (such as random-walks: {})"}
                raise ValueError(f"{name} must hold at least one{example.get(name, '')}, got none")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must differ from each other, got {values}")
        if START in self.agents:
            raise ValueError(f"agents can't have the label {START!r}, which the policy they begin with has")
        for label, agent in self.agents.items():
            for coef in self.coefs(label):
                try:
                    for task in self.tasks:
                        agent.config(0, coef, self.source(task))
                except (TypeError, ValueError) as error:
                    named = type(error)(f"agents.{label}.settings: {error}")
                    for note in getattr(error, "__notes__", []):
                        named.add_note(note)
                    raise named from error

    def source(self, label: str) -> str | None:
        """The task whose settings are used under a label; None if not used or if the task is unknown."""
        from textenv.tasks.registry import task_names

        name = self.tasks[label].task
        return name if self.task_settings and name in task_names() else None

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def coefs(self, label: str) -> tuple[float | None, ...]:
        """The KL coefficients that an agent is run with; (None,) leaves its own settings."""
        return self.kl_coefs if self.kl_coefs and self.agents[label].kl_field() is not None else (None,)


def _setup(cls: type[C], group: str, label: str, given: Any) -> C:
    """Settings of an agent or a task under its label."""
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ValueError(
            f"a label in {group} must be of letters, digits, spaces and . _ + - after a letter or digit, "
            f"got {label!r}"
        )
    if isinstance(given, cls):
        return given
    try:
        made = _nested(cls, {} if given is None else given)
        name = group.removesuffix("s")
        return made.replace(**{name: label}) if getattr(made, name) is None else made
    except (TypeError, ValueError) as error:
        raise type(error)(f"{group}.{label}: {error}") from error


def _nested(cls: type[C], given: Any) -> C:
    """Settings from plain values, with the settings inside them."""
    if not isinstance(given, Mapping):
        raise TypeError(f"must be settings, name: value, got {given!r}")
    inner: dict[str, type[Config]] = {"env": EnvOptions, "policy": PolicyOptions, "start": SFTConfig}
    made = {
        name: inner[name].from_dict(value) if name in inner and isinstance(value, Mapping) else value
        for name, value in given.items()
    }
    return cls.from_dict(made)
