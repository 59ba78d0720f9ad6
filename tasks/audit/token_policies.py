"""Policies without a model, which choose tokens by rules: random, empty, endless and other bad answers.

Shape letter: N environment rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from textenv.envs.vector_env import TextVectorEnv
from textenv.utils.checks import check_choice

KINDS = ("random", "empty", "endless", "special", "repeated")
"""``random``: any legal token, and a stop token with the chance 1/8. ``empty``: stop at once. ``endless``:
never stop. ``special``: special tokens only. ``repeated``: one token again and again."""
_STOP = 1 / 8
_UINT64 = 2**64 - 1


class TokenPolicy:
    """Chooses tokens by a rule, for ``textenv.collect``.

    A token is a function of the environment's noise key, so that the episodes do not depend on the order of
    the rows. With ``group_size`` it is one of the group and the number of earlier tokens instead: the members
    of a group say the same.

    Args:
        envs: the unwrapped environment; its tokens and constraints are used.
        kind: one of ``KINDS``.
        group_size: episodes of a group.

    Raises:
        ValueError: if the kind is unknown, or no token is of this kind.
    """

    def __init__(self, envs: TextVectorEnv, kind: str, *, group_size: int | None = None) -> None:
        check_choice("kind", kind, KINDS)
        rule = envs.legality
        suppressed, stops = set(rule.suppressed_tokens), set(rule.stop_token_ids)
        known = set(envs.tokenizer.get_vocab().values())
        self._free = sorted(known - suppressed - stops) or sorted(known - suppressed)
        self._stops = sorted(stops - suppressed)
        self._least = rule.min_new_tokens
        if kind == "special":
            self._free = sorted(set(envs.tokenizer.all_special_ids) & set(self._free))
        if kind == "repeated":
            self._free = self._free[len(self._free) // 2 :][:1]
        if not self._free or (kind == "empty" and (not self._stops or self._least)):
            raise ValueError(f"no legal token is of the kind {kind!r}")
        self._stop_chance = {"random": _STOP, "empty": 1.0}.get(kind, 0.0)
        self._group_size = group_size
        self._said: dict[int, int] = {}

    def __call__(self, obs: Mapping[str, Any], info: Mapping[str, Any]) -> torch.Tensor:
        """The next token of each row: (N,) int64."""
        steps = torch.as_tensor(obs["attention_mask"]).sum(-1) - torch.as_tensor(obs["prompt_length"])
        keys, episodes = torch.as_tensor(info["key"]).tolist(), torch.as_tensor(info["episode_id"]).tolist()
        actions = torch.zeros(len(keys), dtype=torch.int64)
        for row in torch.as_tensor(info["active"]).nonzero().flatten().tolist():
            seed = [keys[row] & _UINT64]
            if self._group_size is not None:
                said = self._said[episodes[row]] = self._said.get(episodes[row], -1) + 1
                seed = [episodes[row] // self._group_size, said]
            actions[row] = self._choose(np.random.default_rng(seed), int(steps[row]))
        return actions

    def _choose(self, rng: np.random.Generator, step: int) -> int:
        stop = bool(self._stops) and step >= self._least and rng.random() < self._stop_chance
        tokens = self._stops if stop else self._free
        return tokens[int(rng.integers(len(tokens)))]
