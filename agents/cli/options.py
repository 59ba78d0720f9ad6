"""Options of the commands of ``textenv``, as settings classes; agents' own settings are nested in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from textenv.agents.settings.base import Config
from textenv.agents.settings.env_options import EnvOptions
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.agents.settings.ray_rollouts import RayRollouts


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Config):
    """Options of `textenv train`."""

    task: str | None = None
    """Task that brings prompts, tokenizer, rewards and a small model; `textenv tasks` lists them."""
    model: str | None = None
    """Hub id or folder of a causal language model; None is the task's own small one."""
    tokenizer: str | None = None
    """Hub id or folder; None is the model's or the task's."""
    prompts: str | None = None
    """File (.jsonl, .json, .csv, .parquet, .txt), folder or hub id of prompts, instead of the task's."""
    eval_prompts: str | None = None
    """The same, for evaluation; None is the task's validation split, else the prompts of the training."""
    dataset: str | None = None
    """File, folder or hub id that an offline agent learns from; None is the task's."""
    eval_dataset: str | None = None
    """The same, held out, for agents that are evaluated on data (reward models)."""
    reward: Any = None
    """A reward or a list of them: name, [name, {argument: value}], module:function, or file.py:function."""
    num_envs: int | None = None
    """Texts that are generated at a time; None is what the task says, or else 16."""
    start: bool | dict[str, Any] = True
    """Make the task's own model ready as the task says before the agent begins; false begins with random
    weights, and {steps: 50} changes settings of that fine-tuning. A model that is given is left as it is."""
    run_dir: str | None = None
    """Folder for metrics, samples and checkpoints; None is runs/AGENT-DATE-TIME."""
    resume: Literal["auto"] | bool = False
    """Go on with the run in run_dir; auto starts it where there is nothing to go on with."""
    loggers: tuple[str, ...] = ("rich",)
    """Any of rich, wandb, tensorboard; metrics.jsonl is always written."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """How texts are generated."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """How the model becomes a policy."""
    rollouts: RayRollouts = field(default_factory=lambda: RayRollouts(num_actors=0))
    """Play by Ray actors; online agents only."""
    settings: Any = None
    """Settings of the agent; those that are not given are the task's, or else the agent's defaults."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(num_envs=">= 1")


@dataclass(frozen=True, kw_only=True)
class PlayOptions(Config):
    """What `textenv evaluate` and `textenv generate` share."""

    task: str | None = None
    """Task that brings prompts and rewards; `textenv tasks` lists them."""
    split: str | None = None
    """Part of the task's prompts; None is its validation split."""
    prompts: str | None = None
    """File, folder or hub id of prompts, instead of the task's."""
    tokenizer: str | None = None
    """Hub id or folder; None is the model's or the task's."""
    num_envs: int = 16
    """Texts that are generated at a time."""
    seed: int = 0
    """Seed of prompts and noise."""
    greedy: bool = False
    """Always take the likeliest token."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 is all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    out: str | None = None
    """File for the result: JSON of an evaluation, JSON lines of generated texts."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """How texts are generated."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """How the model becomes a policy."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(num_envs=">= 1", top_k=">= 0", top_p="(0, 1]", seed=">= 0")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(PlayOptions):
    """Options of `textenv evaluate`."""

    reward: Any = None
    """A reward, or a list of them, as for `textenv train`; None is the task's."""
    episodes: int = 256
    """Texts to generate."""
    dataset: str | None = None
    """File, folder or hub id of held-out pairs or rated texts that a reward model is measured on."""
    reference: str | None = None
    """Hub id or folder of a model to measure the KL divergence from, and perplexities with."""
    metrics: tuple[Any, ...] = ()
    """Text metrics: a list of names or [name, {option: value}], such as '[rouge, bleu, self_bleu]'."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """Decode settings to compare: {setting: [values]}, as '{temperature: [0.7, 1.0], top_k: [0, 20]}'."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(episodes=">= 1")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(PlayOptions):
    """Options of `textenv generate`."""

    prompt: tuple[str, ...] = ()
    """Prompts given here, as a list."""
    limit: int | None = 16
    """Use only the first so many prompts of a file or task; null is all."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(limit=">= 1")
