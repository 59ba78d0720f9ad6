"""The initial model on a task: its small model, fine-tuned on its demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from textenv.agents.optim.launcher import asked_for, zero_stage
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.settings.offline import SFTConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from textenv.episodes.batch import EpisodeBatch
    from textenv.episodes.preferences import PreferenceBatch
    from textenv.tasks.task import TaskData


def start_config(
    own: Mapping[str, Any] | None, said: bool | Mapping[str, Any], seed: int = 0
) -> SFTConfig | None:
    """Settings of the fine-tuning before training; None is no fine-tuning.

    Args:
        own: the task's, as ``Task.settings`` has them; None if it has none.
        said: the argument ``start``: whether to fine-tune, or settings that override the task's.
        seed: of random weights and of the fine-tuning.

    Raises:
        TypeError: if a setting does not have its field's type, or ``said`` is of another kind.
        ValueError: if a setting is unknown or out of range.
    """
    if not isinstance(said, bool | Mapping):
        raise TypeError(f"start must be True, False or settings of sft, got {said!r}")
    if said is False or (said is True and own is None):
        return None
    from textenv.agents.train_setup.task_settings import unsaid

    given = {} if said is True else dict(said)
    try:
        return SFTConfig.with_defaults({**given, "seed": seed}, unsaid(own or {}, given))
    except (TypeError, ValueError) as error:
        raise type(error)(f"start: {error}") from error


def described(config: SFTConfig | None) -> dict[str, Any] | None:
    """The settings of a start that are not the defaults of ``SFTConfig``, as JSON values; None if none."""
    if config is None:
        return None
    values = config.to_dict()
    return {name: values[name] for name in config.changed(*values, because="") if name != "seed"}


def own_model(task: Any, data: TaskData) -> PretrainedConfig:
    """The config of the task's own small model.

    Raises:
        ValueError: if it has none.
    """
    if data.model_config is None:
        raise ValueError(f"model must be given, for the task {task!r} has none of its own; got None")
    return data.model_config()


def own_dataset(task: Any, data: TaskData, *, preferences: bool) -> EpisodeBatch | PreferenceBatch:
    """What the task has for an offline agent: its preferences if they are wanted, else its demonstrations.

    Raises:
        ValueError: if it has none.
    """
    if preferences and data.preferences is not None:
        return data.preferences.to_batch(data.tokenizer)
    if data.demonstrations is None:
        what = "preferences nor demonstrations" if preferences else "demonstrations"
        raise ValueError(f"dataset must be given, for the task {task!r} has no {what}; got None")
    return data.demonstrations


def make_start(
    model: Any,
    data: TaskData,
    config: SFTConfig | None,
    *,
    seed: int,
    dataset: Any = None,
    policy_kwargs: Mapping[str, Any] | None = None,
    loggers: Sequence[Any] = (),
) -> LanguagePolicy:
    """Make the initial policy; the same arguments give the same policy.

    Args:
        model: what to fine-tune; a config gives random weights.
        data: the task's; its demonstrations are what the model is fine-tuned on.
        config: settings of the fine-tuning; None leaves the model as it is.
        seed: of random weights.
        dataset: instead of the task's demonstrations.
        policy_kwargs: further arguments of the ``LanguagePolicy``; the start is a whole model, so ``lora`` is
            left out.
        loggers: of the fine-tuning.

    Raises:
        ValueError: if there are no demonstrations, or the weights are to be spread over several processes.
    """
    if config is not None and (asked_for() or zero_stage()):
        raise ValueError(
            "a task's start can't be made by processes that share the weights: make it by textenv sft in one "
            "process and give it as the model, or say start=False"
        )
    kwargs = {name: value for name, value in (policy_kwargs or {}).items() if name != "lora"}
    torch.manual_seed(seed)
    policy = LanguagePolicy(model, tokenizer=data.tokenizer, seed=seed, **kwargs)
    if config is not None:
        dataset = data.demonstrations if dataset is None else dataset
        if dataset is None:
            raise ValueError("a start needs dataset= or a task with demonstrations to fine-tune on, got None")
        from textenv.agents.sft import SFT

        SFT(policy, dataset=dataset, tokenizer=data.tokenizer, config=config, loggers=loggers).learn()
    return policy
