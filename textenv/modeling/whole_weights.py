"""Load models, and refuse files without all weights. transformers would initialise missing ones randomly."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from textenv.modeling.model_checks import check_decoder
from textenv.modeling.pretrained import load_pretrained


def load_decoder(
    source: str | os.PathLike[str], *, what: str, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Load a causal LM with all of its weights; see ``load_whole``.

    Raises:
        ValueError: if the files are those of an encoder-decoder (transformers would load only the decoder),
            or of a sequence classifier (transformers would load only the backbone).
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = load_pretrained(AutoConfig, source, what=what, trust_remote_code=trust_remote_code)
    except OSError:  # a folder of adapters has no config.json
        config = None
    check_decoder(config, f"{what} {os.fspath(source)!r}", type(config).__name__)
    kinds = getattr(config, "architectures", None) or []
    if kinds and all(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"{what} must be a causal language model, got a {kinds[0]} in {os.fspath(source)!r}: "
            "a reward model cannot generate text"
        )
    return load_whole(AutoModelForCausalLM, source, what=what, trust_remote_code=trust_remote_code, **options)


def load_whole(auto: Any, source: str | os.PathLike[str], *, what: str, **options: Any) -> Any:
    """Load a model as ``load_fitting``, and refuse files without all weights.

    Raises:
        ValueError: as ``load_fitting``, and if weights are missing.
    """
    model, info = load_fitting(auto, source, what=what, **options)
    refuse_missing(model, info["missing_keys"], f"{what} {os.fspath(source)!r}")
    return model


def load_fitting(
    auto: Any, source: str | os.PathLike[str], *, what: str, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Load a model, and refuse weights whose shapes do not fit its config.

    Args:
        auto: an Auto class of transformers.
        source: hub id or folder.
        what: what is loaded, for errors.
        options: options of ``load_pretrained``.

    Returns:
        (model, transformers' loading info). ``info["missing_keys"]`` are the randomly initialised weights.

    Raises:
        OSError: if there is no such folder or hub id, or a file is missing.
        ValueError: if weights have other shapes than in the config, or the files are damaged.
    """
    try:
        model, info = load_pretrained(auto, source, what=what, output_loading_info=True, **options)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        again = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        _, info = load_pretrained(auto, source, what=what, **{**options, **again})
        wrong = sorted(info["mismatched_keys"])
        first = "" if not wrong else f", first {wrong[0][0]}: {[*wrong[0][1]]}, expected {[*wrong[0][2]]}"
        raise ValueError(
            f"{what} {os.fspath(source)!r} has {len(wrong)} weights whose shapes differ from its config.json"
            f"{first}"
        ) from error
    return model, info


def refuse_missing(model: nn.Module, missing: Iterable[str], what: str) -> None:
    """Refuse a model if some of its weights were not in its files.

    Args:
        model: the model.
        missing: names of the missing weights.
        what: what was loaded, for the error.

    Raises:
        ValueError: if there are missing weights. The message names up to three.
    """
    names = sorted(missing)
    if names:
        few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{what} must have all weights of a {type(model).__name__}, but {len(names)} are missing and "
            f"would be random: {few}"
        )
