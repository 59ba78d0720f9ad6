"""Settings of the pipeline: one dataclass that holds those of its stages."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from textenv.agents.checkpointing.run_folder import STAGES
from textenv.agents.settings.actor_critic import PPOConfig
from textenv.agents.settings.base import Config
from textenv.agents.settings.offline import SFTConfig
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.agents.settings.preferences import RewardModelConfig
from textenv.data.sources import HELD_OUT_SHARE


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The user's data, each a file, folder or hub id as ``textenv.data.load_columns`` reads it."""

    prompts: str | None = None
    """Prompts of the stage rl, where no task is named; None takes those of pairs, sft or ratings, the first
    of these that has any."""
    eval_prompts: str | None = None
    """Prompts of evaluations; None takes the validation split of the prompts, or splits one off."""
    sft: str | None = None
    """What the policy is fine-tuned on; None takes the task's demonstrations, or its plain texts if there are
    any and the model is the task's own, which begins with random weights."""
    pairs: str | None = None
    """Preference pairs for the reward model (prompt, chosen, rejected); None takes the task's feedback."""
    ratings: str | None = None
    """Rated texts for the reward model (text and reward); None takes the task's feedback."""
    held_out: str | None = None
    """Pairs or rated texts that reward model and judge are evaluated on; None takes the validation splits of
    their data, or splits one off."""
    validation_share: float = HELD_OUT_SHARE
    """Fraction of the distinct prompts of a file that is split off where no held-out data are given, by
    a hash of the prompt; 0 trains reward model and judge on all of their data and evaluates them on none."""
    judge: str | None = None
    """Pairs or rated texts for the judge, which the reward model must not have seen."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(validation_share="[0, 1)")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(Config):
    """Settings of the pipeline."""

    task: str | None = None
    """Name of the task: prompts, tokenizer, and the data of stages that ``data`` does not name. None takes
    the prompts of ``data`` and the tokenizer of the model."""
    task_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task."""
    model: str | None = None
    """Hub id or folder of the language model to begin with, or smollm2; None is the task's own small one."""
    device: str | None = None
    """Device of all stages, such as cuda or cpu; None is the GPU if there is one."""
    data: DataConfig = field(default_factory=DataConfig)
    """The user's data."""
    policy: str | None = None
    """Folder or hub id of a fine-tuned policy: the first stage is skipped."""
    reward_model: str | None = None
    """Folder or hub id of a trained reward model: the second stage is skipped."""
    judge_model: str | None = None
    """Folder or hub id of a trained judge: its training is skipped."""
    stages: tuple[str, ...] = STAGES
    """Stages to run; earlier ones must be finished, later ones are left out."""
    sft: SFTConfig = field(default_factory=SFTConfig)
    """Settings of supervised fine-tuning."""
    sft_policy: PolicyOptions = field(default_factory=PolicyOptions)
    """How the model becomes the policy that is fine-tuned: lora, dtype, ...; adapters are then merged in."""
    reward: RewardModelConfig = field(default_factory=RewardModelConfig)
    """Settings of the reward model."""
    judge: RewardModelConfig = field(default_factory=lambda: RewardModelConfig(seed=1))
    """Settings of the judge, which has another seed and other data."""
    rl: PPOConfig = field(default_factory=PPOConfig)
    """Settings of PPO."""
    rl_policy: PolicyOptions = field(default_factory=PolicyOptions)
    """How the fine-tuned model becomes the policy of PPO; with lora, new adapters are made."""
    max_text_tokens: int = 128
    """Longest text of next-token pretraining, in tokens; longer texts are cut at the end."""
    rewards: tuple[Any, ...] = ()
    """Rewards in addition to the reward model's score, as ``make_reward`` reads them."""
    num_envs: int = 32
    """Texts generated in parallel."""
    max_new_tokens: int | None = None
    """Token budget of a response; None is the task's."""
    kl_limit: float = 10.0
    """KL limit in nats per text: above it the watch warns, and the policy is not kept as the best."""
    repetition_limit: float | None = None
    """Highest share of repeated trigrams; None is twice that of the task's human texts, if it has any."""
    stop_when_hacked: bool = False
    """Stop the training when reward and judge diverge or a limit is exceeded; false only warns."""
    final_episodes: int = 256
    """Episodes of the final comparison before/after ``rl``."""
    final_seed: int = 77_777
    """Seed of its prompts and sampling noise; evaluations during training use another one."""

    def validate(self) -> None:
        """Check the ranges and the stages' names."""
        super().validate()
        self.check(
            max_text_tokens=">= 2",
            num_envs=">= 1",
            max_new_tokens=">= 1",
            kl_limit="> 0",
            repetition_limit=">= 0",
        )
        self.check(final_episodes=">= 1", final_seed=">= 0")
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages must differ from each other, got {list(self.stages)}")
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or not self.stages:
            got = repr(unknown[0]) if unknown else "none"
            raise ValueError(f"stages must be among {', '.join(STAGES)}, got {got}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make the settings from what ``to_dict`` gave or a YAML file holds; settings of stages are nested.

        Raises:
            ValueError: if a key is no field; the error names the nearest one.
        """
        hints = typing.get_type_hints(cls)
        made = {
            name: hints[name].from_dict(value)
            if isinstance(value, Mapping)
            and isinstance(hints.get(name), type)
            and issubclass(hints[name], Config)
            else value
            for name, value in values.items()
        }
        return super().from_dict(made)
