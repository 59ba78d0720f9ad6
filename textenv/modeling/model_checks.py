"""Checks of models: a causal LM with finite weights, enough logits and enough positions.

Models are checked by running them, not by their class names. Shape letters: T tokens of the check's texts, W
logits, V vocabulary.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from textenv.modeling.split_model import eval_mode, model_vocab_size, output_head, text_config
from textenv.modeling.weight_version import watch_of

_PROBE = 6
"""Maximum number of tokens of the texts that show whether a model is causal."""
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest change of logits by a later token, in standard deviations of the logits; 0.02 for 16-bit floats."""

_CHECKED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Model -> version of the weights that passed ``check_causal_lm``."""


def check_causal_lm(model: nn.Module, what: str = "the model") -> None:
    """Check that a model is a causal LM with finite weights.

    It runs the model on a few tokens, to check that a later token does not change the logits of an earlier
    one.

    Args:
        model: a transformers model.
        what: name of the model in errors.

    Raises:
        ValueError: if the model is an encoder-decoder or a classifier, has no LM head, attends to later
            tokens, or has weights or logits that are not finite.
    """
    version = watch_of(model).state()[0]
    if _CHECKED.get(model) == version or any(p.is_meta for p in model.parameters()):
        return
    check_decoder(getattr(model, "config", None), what, type(model).__name__)
    check_finite(model, what)
    texts = _probe_texts(model)
    if texts is not None:
        _check_logits(model, what, texts)
    _CHECKED[model] = version


def check_decoder(config: Any, what: str, name: str) -> None:
    """Check that a config is not one of an encoder-decoder.

    Args:
        config: a transformers config, or None.
        what: name of the model in errors.
        name: name of the model's class, for the error.

    Raises:
        ValueError: if it is one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{what} must be a decoder that reads prompt and response as one text, got the encoder-decoder "
            f"{name}; encoder-decoders are not supported"
        )


def _probe_texts(model: nn.Module) -> Tensor | None:
    """(4, T) int64: a text twice, with another last token, and with all tokens after the first changed.

    None if the model has fewer than two tokens or positions.
    """
    size = model_vocab_size(model, 2)
    getter = getattr(model, "get_input_embeddings", lambda: None)
    size = min(size, int(getattr(getter(), "num_embeddings", size)))
    length = min(_PROBE, usable_positions(model) or _PROBE)
    if size < 2 or length < 2:
        return None
    ids = torch.arange(1, length + 1, device=next(model.parameters()).device) * 7919 % size
    texts = ids.repeat(4, 1)
    texts[2, -1:] = (texts[2, -1:] + 1) % size
    texts[3, 1:] = (texts[3, 1:] + 1) % size
    return texts


@torch.no_grad()
def _check_logits(model: nn.Module, what: str, texts: Tensor) -> None:
    name, length = type(model).__name__, texts.shape[1]
    try:
        with eval_mode(list(model.modules())):
            output: Any = model(input_ids=texts, attention_mask=torch.ones_like(texts), use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        if output_head(model) is None:
            raise ValueError(f"{what} must have an LM head, got {name} without one") from error
        raise ValueError(
            f"{what} must run on input_ids and attention_mask alone, but {name} failed on {length} tokens: "
            f"{type(error).__name__}: {error}"
        ) from error
    logits = getattr(output, "logits", None)
    if isinstance(output, _classifier_outputs()):
        raise ValueError(
            f"{what} must be a language model, got the classifier {name}, whose logits are of labels, not of "
            f"tokens ({type(output).__name__}); load it with AutoModelForCausalLM"
        )
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{what} must return logits, got {name} without an LM head; load it with AutoModelForCausalLM"
        )
    size = model_vocab_size(model, logits.shape[-1])
    if logits.shape[:-1] != texts.shape or (output_head(model) is None and logits.shape[-1] != size):
        raise ValueError(
            f"{what} must return logits of shape {(*texts.shape, size)} (batch, tokens, vocabulary), got "
            f"{tuple(logits.shape)} from {name}, which is not a language model"
        )
    if bool(logits.isnan().any()) or bool(logits.isposinf().any()):
        raise ValueError(f"{what} ({name}) returns logits that are not finite, although its weights are")
    spread = logits.double().masked_fill(logits.isneginf(), 0.0).std(unbiased=False)

    def moved(row: int, end: int) -> Tensor:
        before, after = logits[0, :end].double(), logits[row, :end].double()
        return torch.where(before == after, 0.0, before - after).abs().max()

    rounding = moved(1, length)  # difference of the same text in another row of the batch
    allowed = (_TOLERANCES.get(logits.dtype, 0.02) * spread.clamp_min(1e-30)).maximum(4 * rounding)
    for row, end in ((2, length - 1), (3, 1)):
        change = moved(row, end)
        if bool(change > allowed):
            raise ValueError(
                f"{what} must be causal, but in {name} a later token changes the logits of earlier ones (by "
                f"{float(change):.3g}), so its log-probs would depend on the predicted token itself. An "
                "encoder that was trained as a decoder can be loaded with is_decoder=True"
            )


def _classifier_outputs() -> tuple[type, ...]:
    """Output types of transformers' classifiers. With as many labels as tokens, shapes cannot tell."""
    from transformers import modeling_outputs

    return (
        modeling_outputs.TokenClassifierOutput,
        modeling_outputs.SequenceClassifierOutput,
        modeling_outputs.SequenceClassifierOutputWithPast,
        modeling_outputs.MultipleChoiceModelOutput,
    )


# -- weights -------------------------------------------------------------------------------------------------


def first_not_finite(model: nn.Module) -> str | None:
    """Name of the first parameter with NaN or infinite values and their number, or None.

    Finite models need one host-device synchronisation per device.
    """
    named = [
        (name, parameter.detach())
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta
    ]
    sums: dict[torch.device, list[Tensor]] = {}
    for _, parameter in named:
        sums.setdefault(parameter.device, []).append(_sum(parameter))
    # A finite sum has finite summands only. A sum that is not finite may be an overflow.
    if all(bool(torch.stack(found).isfinite().all()) for found in sums.values()):
        return None
    for name, parameter in named:
        broken = int((~parameter.float().isfinite()).sum())
        if broken:
            return f"{name} ({broken} of {parameter.numel()} values)"
    return None


def _sum(parameter: Tensor) -> Tensor:
    wide = parameter if parameter.dtype in (torch.float32, torch.float64) else parameter.float()
    return wide.sum(dtype=torch.float64)


def check_finite(model: nn.Module, what: str = "the model") -> None:
    """Check that all weights are finite.

    Raises:
        ValueError: if not. The message names the first such parameter.
    """
    broken = first_not_finite(model)
    if broken is not None:
        raise ValueError(
            f"{what} must have finite weights, else its logits are not finite; NaN or infinite in "
            f"{type(model).__name__}: {broken}"
        )


def check_not_nan(log_probs: Tensor, policy: Any) -> None:
    """Check that no log-prob is NaN.

    Args:
        log_probs: any shape.
        policy: its ``model`` is searched for weights that are not finite.

    Raises:
        ValueError: if a log-prob is NaN. The message names the first weight that is not finite.
    """
    broken = int(log_probs.isnan().sum())
    if not broken:
        return
    model = getattr(policy, "model", None)
    name = first_not_finite(model) if isinstance(model, nn.Module) else None
    cause = "" if name is None else f"; NaN or infinite in its weights: {name}"
    raise ValueError(f"the policy's logits are not finite: {broken} actions have the log-prob NaN{cause}")


# -- sizes ---------------------------------------------------------------------------------------------------


def usable_positions(model: nn.Module) -> int | None:
    """Maximum number of tokens in a model's input, or None if the config has no limit.

    RoBERTa and similar models start to count positions after the padding index, so they cannot use the first
    rows of their position table.
    """
    named = getattr(text_config(model), "max_position_embeddings", None)
    if not isinstance(named, int) or named <= 0:
        return None
    for name, module in model.named_modules():
        is_table = isinstance(module, nn.Embedding) and name.endswith("position_embeddings")
        if is_table and module.padding_idx is not None:
            named = min(named, module.num_embeddings - module.padding_idx - 1)
    return named


def check_size(model: nn.Module, what: str, *, vocab_size: int, length: int) -> None:
    """Check that a causal LM has enough logits and positions.

    Args:
        model: a causal LM.
        what: name of the model in errors.
        vocab_size: V, the smallest allowed number of logits.
        length: tokens of the longest text.

    Raises:
        ValueError: if it has fewer logits or positions.
    """
    width = getattr(getattr(output_head(model), "weight", None), "shape", (0,))[0]
    width = width or model_vocab_size(model, vocab_size)
    if width < vocab_size:
        raise ValueError(
            f"{what} returns {width} logits, expected at least the tokenizer's vocabulary of {vocab_size}; "
            "resize its embeddings or use a model with the policy's tokenizer"
        )
    _check_positions(model, what, length)


def check_holds(model: nn.Module, token: int, length: int) -> None:
    """Check that a model has an embedding for every token of a data set, and enough positions.

    Args:
        model: a causal LM or a classifier.
        token: largest token id in the data.
        length: tokens of the longest text.

    Raises:
        ValueError: if the vocabulary or the number of positions is too small.
    """
    getter = getattr(model, "get_input_embeddings", lambda: None)
    size = int(getattr(getter(), "num_embeddings", model_vocab_size(model, token + 1)))
    if token >= size:
        raise ValueError(
            f"the model has a vocabulary of {size}, but the data hold token {token}; resize the model's "
            "embeddings or use the model's own tokenizer"
        )
    _check_positions(model, "the model", length)


def _check_positions(model: nn.Module, what: str, length: int) -> None:
    positions = usable_positions(model)
    if positions is not None and positions < length:
        raise ValueError(
            f"{what} has {positions} positions, expected at least the {length} tokens of the longest text"
        )
