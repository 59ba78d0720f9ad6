"""Options of the commands of ``textenv`` as settings classes. An agent's settings are nested in them."""

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
    """Task with prompts, tokenizer, rewards and a small model; `textenv tasks` lists them."""
    model: str | None = None
    """Hub id or folder of a causal language model; None is the task's small model."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; None is that of the model or the task."""
    prompts: str | None = None
    """File (.jsonl, .json, .csv, .parquet, .txt), folder or hub id of prompts, instead of the task's."""
    eval_prompts: str | None = None
    """Prompts to evaluate on; None is the task's validation split, or else the training prompts."""
    dataset: str | None = None
    """Data of an offline agent: file, folder or hub id; None is the task's data."""
    eval_dataset: str | None = None
    """Held-out data for agents that are evaluated on data (reward models)."""
    reward: Any = None
    """A reward or a list of them: name, [name, {argument: value}], module:function, or file.py:function."""
    num_envs: int | None = None
    """Texts generated in parallel; None is the task's setting, or else 16."""
    start: bool | dict[str, Any] = True
    """Fine-tune the task's small model first, with the task's settings; false starts from random weights, and
    {steps: 50} changes settings of the fine-tuning. A model given by --model is not changed."""
    run_dir: str | None = None
    """Folder for metrics, samples and checkpoints; None is runs/AGENT-DATE-TIME."""
    resume: Literal["auto"] | bool = False
    """Continue the run in run_dir; auto starts a new run if there is none."""
    loggers: tuple[str, ...] = ("rich",)
    """Any of rich, wandb, tensorboard; metrics.jsonl is always written."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """Options of the environment."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """Options of the policy around the model."""
    rollouts: RayRollouts = field(default_factory=lambda: RayRollouts(num_actors=0))
    """Rollouts by Ray actors (online agents only)."""
    settings: Any = None
    """Settings of the agent. The rest are the task's settings, or else the agent's defaults."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(num_envs=">= 1")


@dataclass(frozen=True, kw_only=True)
class PlayOptions(Config):
    """Options that `textenv evaluate` and `textenv generate` share."""

    task: str | None = None
    """Task with prompts and rewards; `textenv tasks` lists them."""
    split: str | None = None
    """Part of the task's prompts; None is its validation split."""
    prompts: str | None = None
    """File, folder or hub id of prompts, instead of the task's."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; None is that of the model or the task."""
    num_envs: int = 16
    """Texts generated in parallel."""
    seed: int = 0
    """Seed of prompts and sampling noise."""
    greedy: bool = False
    """Always take the most likely token."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 is all tokens."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability."""
    out: str | None = None
    """File for the result: JSON (evaluate), JSON lines (generate)."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """Options of the environment."""
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    """Options of the policy around the model."""

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
    """File, folder or hub id of held-out pairs or rated texts, to evaluate a reward model."""
    reference: str | None = None
    """Hub id or folder of the reference model, for KL divergence and perplexities."""
    metrics: tuple[Any, ...] = ()
    """Text metrics: names, or [name, {option: value}], such as '[rouge, bleu, self_bleu]'."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """Decoding settings to compare: {setting: [values]}, as '{temperature: [0.7, 1.0], top_k: [0, 20]}'."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(episodes=">= 1")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(PlayOptions):
    """Options of `textenv generate`."""

    prompt: tuple[str, ...] = ()
    """Prompts as texts."""
    limit: int | None = 16
    """Use only the first LIMIT prompts of a file or task; null is all."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(limit=">= 1")


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Config):
    """Options of `textenv check`."""

    prompts: str | None = None
    """File, folder or hub id of prompts, instead of the task's."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer; None is the task's."""
    reward: Any = None
    """A reward, or a list of them, as for `textenv train`; None is the task's."""
    split: str = "train"
    """Part of the task's prompts."""
    player: str | None = None
    """A scripted player, module:function or file.py:function; None is the task's."""
    episodes: int = 16
    """Episodes of each check."""
    num_envs: int = 4
    """Rows of the environment."""
    seed: int = 0
    """Seed of the episodes."""
    skip: tuple[str, ...] = ()
    """Checks to leave out, such as '[sockets, latency]'."""
    json: bool = False
    """Print the findings and the measured values as JSON instead of a table."""
    env: EnvOptions = field(default_factory=EnvOptions)
    """Options of the environment."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(episodes=">= 1", num_envs=">= 1", seed=">= 0")
