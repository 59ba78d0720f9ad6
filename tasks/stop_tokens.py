"""Which tokens end a response: EOS, the chat template's end of turn, and the model's own ends."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textenv.envs.token_constraints import tokenizer_vocab_size
from textenv.prompts.messages import around, turn_end
from textenv.tasks.adapter_source import base_of, find_adapter
from textenv.tasks.fetch_model import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase, *, chat: bool = False, model_ends: Iterable[int] | None = None
) -> list[int]:
    """Default stop tokens of an environment.

    Args:
        tokenizer: its EOS comes first.
        chat: prompts are rendered by the chat template, whose end of turn is an end, too.
        model_ends: see ``generation_ends``; ids that the tokenizer does not have are left out.
    """
    ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if chat and (end := template_end(tokenizer)) is not None:
        ends.append(end)
    size = tokenizer_vocab_size(tokenizer)
    ends += [end for end in model_ends or () if 0 <= end < size]
    return list(dict.fromkeys(ends))


def warn_of_missing_ends(env: Any, model: Any) -> None:
    """Warn if a model ends its texts with tokens that do not end episodes of the environment.

    Args:
        env: environment of the library; nothing is said of others, or where stop tokens were chosen.
        model: see ``generation_ends``.

    Warns:
        UserWarning: naming the tokens.
    """
    base: Any = getattr(env, "unwrapped", None)
    legality = getattr(base, "legality", None)
    if legality is None:
        return
    # An environment that was not made from a task does not say who chose its stop tokens.
    only_eos = legality.stop_token_ids == (base.tokenizer.eos_token_id,)
    if not getattr(base, "default_stop_tokens", only_eos):
        return
    missing = [
        end
        for end in generation_ends(model)
        if 0 <= end < legality.vocab_size and end not in legality.stop_token_ids
    ]
    if missing:
        warnings.warn(
            f"the model ends its texts by the tokens {missing} (eos_token_id of its generation config), "
            "which end no episode of the environment; make it with model_stop_token_ids="
            "textenv.tasks.stop_tokens.generation_ends(model)",
            stacklevel=4,
        )


def template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token by which the chat template ends the assistant's turn, if it does so by one."""
    try:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}]
        probed = around(messages, tokenizer, generation_prompt=False)
    except ValueError:  # a template that refuses these messages says so where real ones are rendered
        return None
    after = "" if probed is None else probed[1]
    end = turn_end(after, tokenizer)
    return None if end is None else int(tokenizer(after[:end], add_special_tokens=False)["input_ids"][-1])


def generation_ends(model: Any) -> list[int]:
    """Tokens that end a model's texts, from its generation config or else its config.

    A single token that is merely the default of the model's class says nothing about a tokenizer and is left
    out.

    Args:
        model: a transformers model, a policy around one, a config, or the name or folder of a saved one
            (which is not loaded, and whose code does not run) or of an adapter, whose base model says. None
            and what cannot be read have no ends.

    Example:
        >>> from transformers import GPT2Config
        >>> generation_ends(GPT2Config()), generation_ends(GPT2Config(eos_token_id=[3, 4]))
        ([], [3, 4])
    """
    from transformers import PretrainedConfig

    if isinstance(model, str | os.PathLike):
        return _saved_ends(model)
    if isinstance(model, PretrainedConfig):
        return _ends(model.eos_token_id, type(model))
    own = getattr(model, "generation_config", None)
    if own is None:
        model = getattr(model, "model", None)
        own = getattr(model, "generation_config", None)
    return [] if own is None else _ends(own.eos_token_id, type(getattr(model, "config", None)))


def _saved_ends(source: str | os.PathLike[str]) -> list[int]:
    from transformers import CONFIG_MAPPING, GenerationConfig, PretrainedConfig

    try:
        place = resolve_model(source)
        if (adapter := find_adapter(place)) is not None:  # its base model says
            place = resolve_model(base_of(place, adapter))
        written, _ = PretrainedConfig.get_config_dict(place)
    except (OSError, ValueError):  # whoever loads the model says what is wrong
        return []
    if not isinstance(written, dict):
        return []
    try:
        config_class = CONFIG_MAPPING[str(written.get("model_type"))]
    except KeyError:
        config_class = None
    try:
        ends = GenerationConfig.from_pretrained(place).eos_token_id
    except (OSError, ValueError):
        ends = written.get("eos_token_id")
    return _ends(ends, config_class)


def _ends(ends: Any, config_class: type | None) -> list[int]:
    if ends is None:
        return []
    if hasattr(ends, "tolist"):
        ends = ends.tolist()
    if isinstance(ends, list | tuple):
        return [int(end) for end in ends]
    return [] if ends == _default_end(config_class) else [int(ends)]


def _default_end(config_class: Any) -> Any:
    try:
        return config_class().eos_token_id
    except (AttributeError, TypeError, ValueError):  # None, or a class that cannot be made without arguments
        return None
