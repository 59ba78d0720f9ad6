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
"""More runs of an agent than anybody can wait for."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*")


@dataclass(frozen=True, kw_only=True)
class Budget(Config):
    """What a run may cost; it ends with the iteration that reaches the first of these, or as its agent says.

    Tokens and calls are counted as in ``textenv.agents.base.agent.SPENT``; evaluations are free.
    """

    env_tokens: int | None = None
    """Tokens generated to learn from."""
    gradient_tokens: int | None = None
    """Tokens, prompts included, of the rows of all optimizer steps."""
    reward_calls: int | None = None
    """Episodes that the rewards were asked about."""
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
    """Settings of the agent that are not its defaults; the study sets the seed."""
    start: bool | None = None
    """Begin with the task's start; false begins with the task's own small model and random weights. None is
    true where the study gives the start, and else what the task's settings of the agent say."""
    model: str | None = None
    """Hub id or folder to begin with, instead of the task's start."""
    dataset: str | None = None
    """File, folder or hub id that an offline agent learns from; None is the task's."""
    kl_setting: str | None = None
    """Setting that takes the study's KL coefficients; None is kl_coef, if the agent has it."""

    def validate(self) -> None:
        """Check that start and model are not both said."""
        super().validate()
        if self.model is not None and self.start is False:
            raise ValueError(f"start must be true where a model is given, got false and {self.model!r}")
        if "seed" in self.settings:
            raise ValueError(f"settings must leave the seed to the study, got {self.settings['seed']!r}")

    def kl_field(self) -> str | None:
        """The setting that the study's KL coefficients go to, None if there is none."""
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
    """Hub id or folder of the model to begin with; None is the task's own small one, with random weights."""
    tokenizer: str | None = None
    """Hub id or folder; None is the model's or the task's."""
    start: SFTConfig | None = None
    """Fine-tuning of the model on the task's demonstrations before agents begin. None: a model that is given
    is left as it is, and the task's own is made ready as the task's settings of the agents say."""
    reward: Any = None
    """What the agents are paid: a reward spec or a list of them; None is the task's."""
    judge: Any = None
    """A reward spec that no agent is trained on and all are measured by; None: the reward itself measures."""
    dataset: str | None = None
    """File, folder or hub id that offline agents and the start learn from; None is the task's."""
    num_envs: int = 16
    """Texts that are generated at a time."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """How texts are generated."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """How the model becomes a policy."""

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
    """Give agents the settings and start that a task has for them (``Task.settings``), where this file gives
    none; false gives them the defaults of their classes, and the task's own model random weights."""
    seeds: int | tuple[int, ...] = 5
    """Seeds 0 to n - 1, or a list of them. With fewer than 5 no winner is called."""
    kl_coefs: tuple[float, ...] = ()
    """KL coefficients that every agent that has one is run with; none leaves the agents' own settings."""
    budget: Budget = field(default_factory=Budget)
    """What a run may cost."""
    evaluations: int = 10
    """Evaluations of a run, evenly spaced over it; the last is at its end."""
    eval_episodes: int = 256
    """Episodes of an evaluation: always the same prompts of the validation split, and the same noise."""
    best_of: tuple[int, ...] = (2, 4, 8, 16)
    """Best-of-n anchors from the start's samples, with no training; [] measures none."""
    best_of_prompts: int = 64
    """Prompts of the best-of-n anchors; each is answered as often as the largest n."""
    kl_budgets: tuple[float, ...] = (1.0, 3.0, 10.0)
    """Nats of KL divergence from the start at which rewards are compared."""
    threads: int | None = 1
    """Threads of a run; results depend on it in the last digits. None is torch's default."""
    keep_models: bool = False
    """Keep the checkpoints and best models of finished runs, rather than the numbers alone."""

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
        """The task whose settings of agents count under a task's label; None if none do, or it is unknown."""
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
