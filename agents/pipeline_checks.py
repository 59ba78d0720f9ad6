"""What the stages of the pipeline need, checked before the first one begins: days may lie before the last."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.agents.datasets import as_demonstrations
from textenv.agents.loggers.registry import check_loggers
from textenv.agents.reward_models.data import as_reward_batch
from textenv.agents.run_folder import RunFolder, RunFolderError
from textenv.legality import vocabulary_size
from textenv.pretrained import load_pretrained
from textenv.tasks.fetch_model import resolve_model

if TYPE_CHECKING:
    from textenv.agents.config import AgentConfig
    from textenv.agents.pipeline import Pipeline
    from textenv.agents.policies.options import PolicyOptions

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
"""Files of a model's folder that hold weights, or say where they are."""


def check_needs(pipeline: Pipeline, todo: Sequence[str], *, ends: bool) -> None:
    """Check all that the stages need.

    Data sets are read and tokenized as the stages will do it, so a row that a later stage would refuse is
    found now. Nothing is written.

    Args:
        pipeline: the pipeline.
        todo: names of the stages that have to run.
        ends: whether the comparison of before and after follows.

    Raises:
        StageError: if a stage has no data or no model.
        ValueError: (or what the stage would raise) with a note on which stage needs what was found wrong.
    """
    cfg = pipeline.config
    check_writable(pipeline.run_dir)
    check_loggers(pipeline.loggers, pipeline.run_dir)
    check_device("device", cfg.device)
    if "sft" in todo:
        with _needed_by("sft"), _quietly():
            check_extras(cfg.sft, "sft", cfg.sft_policy, "sft_policy")
            model, dataset = pipeline.tuning_needs()
            if isinstance(model, str):
                check_model("model", model, pipeline.data.tokenizer)
            as_demonstrations(dataset, pipeline.data.tokenizer)
    for name, settings, field in (("reward-model", cfg.reward, "reward"), ("judge", cfg.judge, "judge")):
        if name in todo:
            with _needed_by(name), _quietly():
                check_extras(settings, field)
                train, held_out = pipeline.scoring_needs(name)
                feedback, tokenizer = pipeline.data.feedback, pipeline.data.tokenizer
                if feedback is not None and feedback.make_scorer is not None:
                    tokenizer = feedback.make_scorer()[1]
                for dataset in (train, held_out):
                    if dataset is not None:
                        as_reward_batch(dataset, tokenizer, max_length=settings.max_length)
    if "rl" in todo:
        with _needed_by("rl"):
            check_extras(cfg.rl, "rl", cfg.rl_policy, "rl_policy")
            if cfg.policy is not None:
                check_model("policy", cfg.policy, pipeline.data.tokenizer)
            for field in ("reward_model", "judge_model"):
                if getattr(cfg, field) is not None:
                    check_model(field, getattr(cfg, field), scores=True)
            with _quietly():
                pipeline.envs([], split="train").close()
    if ends:
        with _needed_by("rl"), _quietly():
            pipeline.envs([], split="validation").close()
            pipeline.people()


def check_writable(run_dir: Path) -> None:
    """Refuse a folder that can't be made or written to.

    Raises:
        RunFolderError: if it can't.
    """
    folder = RunFolder(run_dir).path.absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise RunFolderError(f"{run_dir} can't be made: {there} is a file; choose another run_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunFolderError(f"{run_dir} can't be written to: {there} is read-only; choose another run_dir")


def check_device(field: str, device: str | None) -> None:
    """Refuse a device that is unknown or not there.

    Raises:
        ValueError: naming the field.
    """
    import torch

    if device is None:
        return
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch has one for each way to be wrong
        reason = str(error).splitlines()[0]
        raise ValueError(f"{field} must be a device that is there, got {device!r}: {reason}") from error


def check_extras(
    settings: AgentConfig, name: str, policy: PolicyOptions | None = None, policy_name: str = ""
) -> None:
    """Refuse settings that need a package that is not installed.

    Raises:
        ImportError: naming the setting and the extra.
        ValueError: if a device is not there.
    """
    needs = {f"{name}.optimizer": ("bitsandbytes", "quantized", settings.optimizer == "adamw_8bit")}
    if policy is not None:
        needs[f"{policy_name}.lora"] = ("peft", "lora", bool(policy.lora))
        check_device(f"{policy_name}.device", policy.device)
    for field, (package, extra, needed) in needs.items():
        if needed and find_spec(package) is None:
            raise ImportError(f"{field} needs {package}: pip install 'textenv[{extra}]'")


def check_model(field: str, source: str, tokenizer: Any = None, *, scores: bool = False) -> None:
    """Refuse what is no model, or a model of another kind, without loading its weights.

    Args:
        field: the setting, for errors.
        source: hub id or folder.
        tokenizer: whose tokens it must have; None asks for none.
        scores: whether it must be a sequence classifier rather than write texts.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is of another kind, or has too few tokens.
    """
    from transformers import AutoConfig

    name = resolve_model(source)
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():  # its base model is named there, and read with it
        return
    config = load_pretrained(AutoConfig, name, what=field)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise ValueError(f"{field} {source!r} holds no weights (model.safetensors)")
    kinds = getattr(config, "architectures", None) or []
    classifies = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if scores and kinds and not classifies:
        raise ValueError(f"{field} must be a sequence classifier, got a {kinds[0]} in {source!r}")
    if not scores and classifies:
        raise ValueError(f"{field} must be a causal language model, got a {kinds[0]} in {source!r}")
    size = getattr(config, "vocab_size", None)
    if tokenizer is not None and isinstance(size, int) and size < vocabulary_size(tokenizer):
        raise ValueError(
            f"{field} {source!r} has a vocabulary of {size} tokens, "
            f"fewer than the tokenizer's {vocabulary_size(tokenizer)}"
        )


@contextmanager
def _needed_by(stage: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"needed by the stage {stage!r}; no stage has begun")
        raise


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings about data, which come again when the stage reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
