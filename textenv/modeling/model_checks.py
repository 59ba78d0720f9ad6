"""What a model must be to act, to be trained or to be compared with, found out by trying it, not by its name.

Shape letters: T tokens of the probe, W logits, V vocabulary.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from textenv.modeling.split_model import eval_mode, model_vocab_size, output_head, text_config
from textenv.modeling.weight_version import watch_of

_PROBE = 6
"""Tokens of the text that shows whether a model looks ahead."""
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
"""How far logits may move with a later token, in standard deviations; 16-bit formats get 0.02."""

_CHECKED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Model -> version of the weights that passed ``check_causal_lm``."""


def check_causal_lm(model: nn.Module, what: str = "the model") -> None:
    """Make sure that a model can be a policy over tokens: a causal LM with finite weights.

    A few tokens are run through it, to see that no later token changes the logits of an earlier one.

    Args:
        model: a transformers model.
        what: how errors call it.

    Raises:
        ValueError: for an encoder-decoder, a classifier, a model without LM head, one that looks at later
            tokens, and weights or logits that are not finite.
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
    """Refuse the configuration of an encoder-decoder.

    Raises:
        ValueError: if it is one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{what} must be a decoder that reads prompt and response as one text, got the encoder-decoder "
            f"{name}; encoder-decoders are not supported"
        )


def _probe_texts(model: nn.Module) -> Tensor | None:
    """(4, T): a text twice, with another last token, and with all tokens after the first changed."""
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
            f"tokens ({type(output).__name__}); load it by AutoModelForCausalLM"
        )
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{what} must give logits, got {name} without an LM head; load it by AutoModelForCausalLM"
        )
    size = model_vocab_size(model, logits.shape[-1])
    if logits.shape[:-1] != texts.shape or (output_head(model) is None and logits.shape[-1] != size):
        raise ValueError(
            f"{what} must give a logit for each token of its vocabulary at each position, "
            f"{(*texts.shape, size)}, got {tuple(logits.shape)} from {name}, which is no language model"
        )
    if bool(logits.isnan().any()) or bool(logits.isposinf().any()):
        raise ValueError(f"{what} ({name}) gives logits that are not finite, though its weights are finite")
    spread = logits.double().masked_fill(logits.isneginf(), 0.0).std(unbiased=False)

    def moved(row: int, end: int) -> Tensor:
        before, after = logits[0, :end].double(), logits[row, :end].double()
        return torch.where(before == after, 0.0, before - after).abs().max()

    rounding = moved(1, length)  # the same text in another row of the batch
    allowed = (_TOLERANCES.get(logits.dtype, 0.02) * spread.clamp_min(1e-30)).maximum(4 * rounding)
    for row, end in ((2, length - 1), (3, 1)):
        change = moved(row, end)
        if bool(change > allowed):
            raise ValueError(
                f"{what} must be causal, but in {name} a later token changes the logits of earlier ones (by "
                f"{float(change):.3g}): its log-probs of a text would know the answer. An encoder can be "
                "loaded as a decoder with is_decoder=True, if it was trained so"
            )


def _classifier_outputs() -> tuple[type, ...]:
    """Types of what transformers' classifiers give: with as many labels as tokens, shapes say nothing."""
    from transformers import modeling_outputs

    return (
        modeling_outputs.TokenClassifierOutput,
        modeling_outputs.SequenceClassifierOutput,
        modeling_outputs.SequenceClassifierOutputWithPast,
        modeling_outputs.MultipleChoiceModelOutput,
    )


# -- weights -------------------------------------------------------------------------------------------------


def first_not_finite(model: nn.Module) -> str | None:
    """The first parameter that is not finite, as text, or None; the host waits for the device once."""
    named = [
        (name, parameter.detach())
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.numel() and not parameter.is_meta
    ]
    sums: dict[torch.device, list[Tensor]] = {}
    for _, parameter in named:
        sums.setdefault(parameter.device, []).append(_sum(parameter))
    # A sum is finite only if every summand is; one that is not may be an overflow.
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
    """Refuse weights that are NaN or infinite: no logit of such a model is finite.

    Raises:
        ValueError: naming the first such parameter.
    """
    broken = first_not_finite(model)
    if broken is not None:
        raise ValueError(
            f"{what} must have finite weights, else its logits are not finite; NaN or infinite in "
            f"{type(model).__name__}: {broken}"
        )


def check_not_nan(log_probs: Tensor, policy: Any) -> None:
    """Refuse log-probs that are NaN, and name a weight of the policy's model that makes them so.

    Raises:
        ValueError: if there is one.
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
    """Tokens of the longest text that a model can read, None if it names no limit.

    RoBERTa and its kin count positions from behind that of the padding, so a few rows of their table are
    never used.
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
    """Make sure that a causal LM has logits for a vocabulary and positions for texts.

    Args:
        model: a causal LM.
        what: how errors call it.
        vocab_size: V, tokens that there must be.
        length: tokens of the longest text.

    Raises:
        ValueError: if it has fewer.
    """
    width = getattr(getattr(output_head(model), "weight", None), "shape", (0,))[0]
    width = width or model_vocab_size(model, vocab_size)
    if width < vocab_size:
        raise ValueError(
            f"{what} gives {width} logits, expected at least the tokenizer's vocabulary of {vocab_size}; "
            "resize its embeddings or use a model with the policy's tokenizer"
        )
    _check_positions(model, what, length)


def check_holds(model: nn.Module, token: int, length: int) -> None:
    """Make sure that a model can read a data set.

    Args:
        model: a causal LM or a classifier.
        token: the largest token id.
        length: tokens of the longest text.

    Raises:
        ValueError: if it has fewer tokens or positions.
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
