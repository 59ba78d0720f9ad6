"""Scripted players of the games, and the episodes that they play: data for offline agents.

A player gets the words of an episode so far and says its next turn. Shape letter: N environment rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from textenv.envs.vector_env import TextVectorEnv
from textenv.rollout import collect
from textenv.utils.checks import check_at_least, check_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textenv.episodes.batch import EpisodeBatch
    from textenv.tasks.task import TaskData

Player: TypeAlias = Callable[[Sequence[str], np.random.Generator], str]
"""``player(words, rng) -> turn``: the words of opening, turns and replies; the generator of this turn."""
ROWS = 128
_UINT64 = 2**64 - 1


class ScriptedPolicy:
    """Lets players choose the actions: a policy for ``textenv.collect``.

    Each episode has one player, drawn with equal chances by (seed, episode id), so the episodes do not depend
    on the number of rows.

    Args:
        players: to draw from.
        tokenizer: of the environment.
        max_turn_tokens: a shorter turn is ended by the tokenizer's EOS.
        seed: of the choice of players; turns are drawn by the environment's noise keys.
    """

    def __init__(
        self,
        players: Sequence[Player],
        tokenizer: PreTrainedTokenizerBase,
        max_turn_tokens: int,
        *,
        seed: int = 0,
    ) -> None:
        check_at_least("players", len(players), 1)
        self.players = list(players)
        self.tokenizer = tokenizer
        self.max_turn_tokens = max_turn_tokens
        self.seed = check_seed("seed", seed)
        self._turns: dict[int, list[int]] = {}
        self._encoded: dict[str, list[int]] = {}

    def player(self, episode_id: int) -> Player:
        """The player of an episode."""
        return self.players[int(np.random.default_rng([self.seed, episode_id]).integers(len(self.players)))]

    def __call__(self, obs: Mapping[str, Any], info: Mapping[str, Any]) -> torch.Tensor:
        """The next token of each row: (N,) int64."""
        lengths = torch.as_tensor(obs["attention_mask"]).sum(-1).tolist()
        starts = torch.as_tensor(obs["prompt_length"]).tolist()
        rows = torch.as_tensor(obs["input_ids"]).tolist()
        keys, episodes = torch.as_tensor(info["key"]).tolist(), torch.as_tensor(info["episode_id"]).tolist()
        actions = torch.zeros(len(lengths), dtype=torch.int64)
        for row in torch.as_tensor(info["active"]).nonzero().flatten().tolist():
            step = lengths[row] - starts[row]
            if step == 0:
                words = self._words(rows[row][: lengths[row]])
                rng = np.random.default_rng(keys[row] & _UINT64)
                turn = self.player(episodes[row])(words, rng)
                self._turns[row] = self._ids(turn)
            actions[row] = self._turns[row][step]
        return actions

    def _ids(self, turn: str) -> list[int]:
        if turn not in self._encoded:
            ids = self.tokenizer(turn, add_special_tokens=False)["input_ids"]
            self._encoded[turn] = [*ids, self.tokenizer.eos_token_id][: self.max_turn_tokens]
        return self._encoded[turn]

    def _words(self, ids: list[int]) -> list[str]:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).split()


def play(
    data: TaskData, players: Sequence[Player], episodes: int, *, seed: int = 0, num_envs: int = ROWS
) -> EpisodeBatch:
    """Episodes of a task whose turns are chosen by players, played in its environment.

    Args:
        data: of a task with a partner and without rewards of its own.
        players: each episode has one of them, drawn with equal chances.
        episodes: number of episodes.
        seed: of the worlds, the players and their turns.
        num_envs: rows; the episodes do not depend on it.

    Returns:
        The episodes in order, with the partner's rewards at the tokens that ended the turns.
    """
    assert data.max_turn_tokens is not None
    envs = TextVectorEnv(
        num_envs,
        prompts=data.prompt_set(),
        tokenizer=data.tokenizer,
        max_new_tokens=data.max_new_tokens,
        partner=data.partner,
        max_turns=data.max_turns,
        max_turn_tokens=data.max_turn_tokens,
        max_length=data.max_length,
    )
    policy = ScriptedPolicy(players, data.tokenizer, data.max_turn_tokens, seed=seed)
    batch = collect(envs, policy, episodes, seed=seed)
    envs.close()
    return batch
