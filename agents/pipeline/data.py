"""The data of a pipeline: its prompts where no task is named, and what is held out where no file is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textenv.agents.checkpointing.needs import needed_by
from textenv.agents.pipeline.config import PipelineConfig
from textenv.data.held_out import split_off
from textenv.data.loading import load_columns
from textenv.data.sources import VALIDATION, may_be_hub_id, splits_of
from textenv.tasks.prompts import with_prompts

PROMPTS = "prompts"
"""Name of the task of the user's prompts."""
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
            raise ValueError("model must be given without a task, got None")
        kwargs = with_prompts(kwargs, _with_prompts(config, given))
    elif data.prompts is not None:
        if config.task != PROMPTS:
            raise ValueError(
                f"data.prompts must not be given with a task that has prompts, got {data.prompts!r} and the "
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
        share: fraction of the prompts; 0 holds nothing out.

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
            parts[kind] = source  # only the hub knows whether it has other splits
        else:
            records = load_columns(source)
            parts[kind] = split_off(records, held_out=False, share=share)
            held_out[kind] = split_off(records, held_out=True, share=share)
    return parts, held_out or None
