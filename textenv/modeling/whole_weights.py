"""Loading models from files that hold all weights; for those that lack, transformers fills in random ones."""

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
    """A causal LM with all of its weights, see ``load_whole``.

    Raises:
        ValueError: if it is an encoder-decoder, of which transformers would load the decoder alone, or a
            sequence classifier, of which it would load the trunk and tie or draw the rest.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = load_pretrained(AutoConfig, source, what=what, trust_remote_code=trust_remote_code)
    except OSError:  # a folder of adapters has no config, and names its model elsewhere
        config = None
    check_decoder(config, f"{what} {os.fspath(source)!r}", type(config).__name__)
    kinds = getattr(config, "architectures", None) or []
    if kinds and all(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(
            f"{what} must be a causal language model, got a {kinds[0]} in {os.fspath(source)!r}: "
            "a reward model writes no text"
        )
    return load_whole(AutoModelForCausalLM, source, what=what, trust_remote_code=trust_remote_code, **options)


def load_whole(auto: Any, source: str | os.PathLike[str], *, what: str, **options: Any) -> Any:
    """The model that ``load_fitting`` gives for the same arguments, refusing files that lack weights.

    Raises:
        ValueError: if weights are missing, too.
    """
    model, info = load_fitting(auto, source, what=what, **options)
    refuse_missing(model, info["missing_keys"], f"{what} {os.fspath(source)!r}")
    return model


def load_fitting(
    auto: Any, source: str | os.PathLike[str], *, what: str, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """``load_pretrained`` and what it did not find, refusing weights that do not fit the configuration.

    Args:
        auto: an Auto class of transformers.
        source: hub id or folder.
        what: what is loaded, for errors.
        options: of ``load_pretrained``.

    Returns:
        The model, and transformers' loading info; ``info["missing_keys"]`` are the weights that are random.

    Raises:
        OSError: if there is nothing of that name, or a file is missing.
        ValueError: if weights have another shape than the configuration says, or the files are damaged.
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
            f"{what} {os.fspath(source)!r} holds {len(wrong)} weights of other sizes than its config.json "
            f"says{first}"
        ) from error
    return model, info


def refuse_missing(model: nn.Module, missing: Iterable[str], what: str) -> None:
    """Refuse a model of which weights were not in its files.

    Raises:
        ValueError: naming the first few that are missing.
    """
    names = sorted(missing)
    if names:
        few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{what} must hold all weights of a {type(model).__name__}, it lacks {len(names)}, which would "
            f"be random: {few}"
        )
