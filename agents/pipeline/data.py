"""The data of a pipeline: its prompts where no task is named, and what is held out where no file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.agents.checkpointing.needs import needed_by, quietly
from textenv.agents.distributed.devices import device_kwargs
from textenv.agents.pipeline.config import PipelineConfig
from textenv.agents.train_setup.arguments import fitting_budget
from textenv.data.held_out import split_off
from textenv.data.loading import load_columns
from textenv.data.sources import VALIDATION, may_be_hub_id, splits_of
from textenv.tasks.prompts import with_prompts
from textenv.tasks.task import Task

PROMPTS = "prompts"
"""The task of prompts of one's own."""
_HOLD_PROMPTS = ("prompts", "pairs", "sft", "ratings")
"""Fields of ``data`` whose prompts are used, in this order."""


def task_of(config: PipelineConfig) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the task: the one named, or "prompts" with the user's own prompts.

    Raises:
        ValueError: if neither a task nor data are given, the data hold no prompts, or ``data.prompts`` stand
            beside a task that has prompts.
    """
    data, kwargs = config.data, dict(config.task_kwargs)
    given = [name for name in _HOLD_PROMPTS if getattr(data, name) is not None]
    if config.task is None:
        if not given:
            raise ValueError(f"task must be given, or data.{', data.'.join(_HOLD_PROMPTS)}; got none of them")
        if config.model is None and config.policy is None:
            raise ValueError("model must be given where there is no task to bring one, got None")
        kwargs = with_prompts(kwargs, _with_prompts(config, given))
    elif data.prompts is not None:
        if config.task != PROMPTS:
            raise ValueError(
                f"data.prompts must be left out where the task brings prompts, got {data.prompts!r} and the "
                f"task {config.task!r}"
            )
        kwargs = with_prompts(kwargs, data.prompts)
    if config.task in (None, PROMPTS):
        share = 0.0 if data.eval_prompts is not None else data.validation_share
        kwargs.setdefault("validation", share)
    return config.task or PROMPTS, kwargs


def _with_prompts(config: PipelineConfig, given: list[str]) -> str:
    """The first of the data files that holds prompts."""
    looked = []
    for name in given:
        source = str(getattr(config.data, name))
        with needed_by(f"the prompts of the stage 'rl', looked for in data.{name}; no stage has begun"):
            columns = load_columns(source, columns=[]).columns
        if {"prompt", "messages"} & set(columns):
            return source
        looked.append(f"data.{name} has the columns {', '.join(columns)}")
    raise ValueError(
        "data.prompts must be given, a file with the column prompt or messages, for the other data hold no "
        f"prompts: {'; '.join(looked)}"
    )


def divided(train: Mapping[str, str], share: float) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Training and held-out part of files that a scorer learns from, none of which is held out.

    A folder or data set with a validation split keeps it; of other sources ``share`` of the prompts is split
    off, see ``textenv.data.held_out``.

    Args:
        train: "pairs" or "ratings" -> file, folder or hub id.
        share: of the prompts; 0 holds nothing out.

    Raises:
        ValueError: if all records have the same prompt.
    """
    if share == 0:
        return dict(train), None
    parts: dict[str, Any] = {}
    held_out: dict[str, Any] = {}
    for kind, source in train.items():
        if not VALIDATION.isdisjoint(splits_of(source)):
            parts[kind], held_out[kind] = source, load_columns(source, split="validation")
        elif may_be_hub_id(source):
            parts[kind] = source  # whether it has other splits is for the hub to say
        else:
            records = load_columns(source)
            parts[kind] = split_off(records, held_out=False, share=share)
            held_out[kind] = split_off(records, held_out=True, share=share)
    return parts, held_out or None


def budget_of(config: PipelineConfig, task: Task, task_kwargs: Mapping[str, Any]) -> int | None:
    """Token budget of a response; None is the task's. Of prompts of one's own it fits into the model."""
    if config.max_new_tokens is not None or task.name != PROMPTS:
        return config.max_new_tokens
    with quietly():
        made = [
            make_envs(config, task, task_kwargs, [], split=split, budget=None)
            for split in ("train", "validation")
        ]
    return fitting_budget(made, config.policy or config.model, {"task_kwargs": task_kwargs})


def make_envs(
    config: PipelineConfig,
    task: Task,
    task_kwargs: Mapping[str, Any],
    rewards: Sequence[Any],
    *,
    split: str,
    budget: int | None,
) -> Any:
    """Environments of a pipeline's prompts, "train" in random order or "validation" in theirs."""
    from textenv.tasks.make import make_vec_env
    from textenv.tasks.stop_tokens import generation_ends

    shuffle, prompts, given = split == "train", None, config.data.eval_prompts
    if split == "validation" and given is not None:
        if task.name == PROMPTS:
            task_kwargs = {**task_kwargs, "data": given}
            split = "validation" if splits_of(given) else "train"
        else:
            prompts = given
    return make_vec_env(
        config.num_envs,
        task=task,
        task_kwargs=task_kwargs,
        split=split,
        rewards=rewards,
        prompts=prompts,
        max_new_tokens=budget,
        model_stop_token_ids=generation_ends(config.model or config.policy),
        shuffle=shuffle,
        device=device_kwargs(config.device).get("device", "cpu"),
    )
