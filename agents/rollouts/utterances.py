"""New turns of the policy in states of recorded episodes. Shape letters: B episodes, F states, L tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.turns import turn_starts
from textenv.prompts.prompt_set import PromptSet
from textenv.rollout import collect


class TurnStates(NamedTuple):
    """States at the beginning of turns of recorded episodes."""

    rows: Tensor
    """(F,) int64: the row of the episode."""
    columns: Tensor
    """(F,) int64: the column of the turn's first token."""


def turn_states(episodes: EpisodeBatch, envs: Any) -> TurnStates:
    """The states of all turns of B episodes in which the environment has room for a turn of full length."""
    base = envs.unwrapped
    rows, columns = turn_starts(episodes.action_mask).nonzero(as_tuple=True)
    fits = columns + base.max_turn_tokens <= base.max_length
    return TurnStates(rows[fits], columns[fits])


def sample_turns(
    policy: Any, envs: Any, episodes: EpisodeBatch, states: TurnStates, *, seed: int, first: int
) -> EpisodeBatch:
    """One turn of the policy in each state: F episodes of one turn, the recorded tokens before it as prompt.

    The turns end as in the environment: at a stop token, a stop string or ``max_turn_tokens``. They are a
    function of the weights, the states, ``seed`` and ``first``.

    Args:
        policy: a ``LanguagePolicy``.
        envs: environment that the episodes are from.
        episodes: the recorded episodes.
        states: F of their states, at least one.
        seed: of the sampling noise.
        first: number of the first turn; the next call gets the number after the last one.
    """
    base = envs.unwrapped
    ids = episodes.input_ids.tolist()
    contexts = [ids[row][:column] for row, column in zip(*map(Tensor.tolist, states), strict=True)]
    rule = base.legality
    one_turn = TextVectorEnv(
        min(base.num_envs, len(contexts)),
        prompts=PromptSet(contexts),
        tokenizer=base.tokenizer,
        max_new_tokens=base.max_turn_tokens,
        stop_token_ids=rule.stop_token_ids,
        stop_strings=base.stop_strings.strings,
        min_new_tokens=rule.min_new_tokens,
        suppressed_tokens=rule.suppressed_tokens,
        shuffle=False,
        device=base.device,
    )
    with policy.decoding.without_values():
        found = collect(one_turn, policy, len(contexts), seed=seed, first_ticket=first, score=False)
    return found.select(torch.argsort(found.prompt_index))
