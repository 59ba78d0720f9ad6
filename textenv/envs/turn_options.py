"""The arguments of an environment with a partner, checked and completed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textenv.envs.token_constraints import tokenizer_vocab_size
from textenv.envs.turn_prompts import TurnPrompts
from textenv.envs.turns import RESERVED, WAITING, TurnLimits, Turns
from textenv.episodes.conversations import TURN_EXTRAS
from textenv.partners.registry import make_partner
from textenv.prompts.prompt_set import PromptSet
from textenv.utils.checks import check_at_least, check_choice, check_flag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TURNS = 8
"""Most turns of the policy in an episode, unless another number is given."""


def make_turns(
    partner: Any,
    num_envs: int,
    prompts: PromptSet,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    *,
    max_turns: int | None,
    max_turn_tokens: int | None,
    max_length: int | None,
    waiting: str,
    chat: bool,
) -> Turns | None:
    """The turns of an environment; None without a partner. See ``TextVectorEnv`` for the arguments.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range or given without a partner, a column of the prompts has a
            name that the record needs, or the chat template does not suit turns.
    """
    check_choice("waiting", waiting, WAITING)
    check_flag("chat", chat)
    given = {"max_turns": max_turns, "max_turn_tokens": max_turn_tokens, "max_length": max_length}
    if partner is None:
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} needs a partner, got {name}={value} without one")
        return None
    for name, value in given.items():
        if value is not None:
            check_at_least(name, value, 1)
    spec = make_partner(partner)
    turns = MAX_TURNS if max_turns is None else max_turns
    tokens = min(max_new_tokens, max_new_tokens if max_turn_tokens is None else max_turn_tokens)
    vocab_size = tokenizer_vocab_size(tokenizer)
    tools = spec.tools(tokenizer, chat=chat)
    encoder = TurnPrompts(prompts, tokenizer, vocab_size, chat=chat, tools=tools)
    if max_length is None:
        longest = prompts.max_length + encoder.tool_tokens
        max_length = longest + max_new_tokens + turns * spec.cls.max_reply_tokens
    if max_length <= prompts.max_length:
        raise ValueError(
            f"max_length must be more than the longest prompt ({prompts.max_length} tokens), got {max_length}"
        )
    for name in (*TURN_EXTRAS, *RESERVED):
        if name in prompts.columns:
            raise ValueError(f"prompts must have no column {name!r}, which episodes with a partner add")
    limits = TurnLimits(turns, tokens, max_new_tokens, max_length)
    return Turns(spec, num_envs, encoder, limits, waiting=waiting)
