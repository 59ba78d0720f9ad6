"""Checks before a long run: folders, devices, packages, and models by their configs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.agents.checkpointing.run_folder import RunFolder, RunFolderError
from textenv.modeling.pretrained import load_pretrained
from textenv.modeling.saved_runs import model_folder
from textenv.tasks.fetch_model import resolve_model

if TYPE_CHECKING:
    from textenv.agents.settings.policy_options import PolicyOptions

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
"""Weight files of a model's folder, and their index files."""


class WrongKindError(ValueError):
    """A model that scores texts, where one that writes them was expected, or the other way round."""


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


def check_optimizer(field: str, kind: str) -> None:
    """Refuse an optimizer whose package is not installed.

    Raises:
        ImportError: naming the field and the extra.
    """
    if kind == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ImportError(f"{field} needs bitsandbytes: pip install 'textenv[quantized]'")


def check_policy_options(field: str, options: PolicyOptions) -> None:
    """Refuse options of a policy that need a package or a device that is not there.

    Raises:
        ImportError: naming the option and the extra.
        ValueError: if the device is not there.
    """
    if options.lora and find_spec("peft") is None:
        raise ImportError(f"{field}.lora needs peft: pip install 'textenv[lora]'")
    if options.device is not None:
        from textenv.utils.checks import check_device

        check_device(f"{field}.device", options.device)


def check_model(field: str, source: str, tokenizer: Any = None, *, scores: bool = False) -> None:
    """Refuse a path that is no model, or a model of another kind, without loading weights.

    Args:
        field: the setting, for errors.
        source: hub id or folder.
        tokenizer: whose vocabulary the model must cover; None skips the check.
        scores: whether it must be a sequence classifier instead of a causal LM.

    Raises:
        OSError: if there is no such model.
        WrongKindError: if it is of another kind.
        ValueError: if it holds no weights, or has too few tokens.
    """
    from transformers import AutoConfig

    from textenv.envs.token_constraints import tokenizer_vocab_size

    name = os.fspath(model_folder(source, scores=scores)) if Path(source).is_dir() else resolve_model(source)
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():  # its base model is named there, and read with it
        return
    config = load_pretrained(AutoConfig, name, what=field)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise ValueError(f"{field} {source!r} holds no weights (model.safetensors)")
    kinds = getattr(config, "architectures", None) or []
    classifies = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if scores and kinds and not classifies:
        raise WrongKindError(f"{field} must be a sequence classifier, got a {kinds[0]} in {source!r}")
    if not scores and classifies:
        raise WrongKindError(f"{field} must be a causal language model, got a {kinds[0]} in {source!r}")
    size = getattr(config, "vocab_size", None)
    if tokenizer is not None and isinstance(size, int) and size < tokenizer_vocab_size(tokenizer):
        raise ValueError(
            f"{field} {source!r} has a vocabulary of {size} tokens, "
            f"fewer than the tokenizer's {tokenizer_vocab_size(tokenizer)}"
        )


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Add a note to errors: which part of the run needs the checked item."""
    try:
        yield
    except Exception as error:
        error.add_note(f"needed by {what}")
        raise


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress warnings about data: they are repeated when the data are used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
