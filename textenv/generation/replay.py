"""A policy that replays given responses token by token, such as those of a generation engine.

The environment treats them like any policy's actions: it decides terminations, episode ids and rewards. Shape
letters: N environment rows, n episodes, T tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.envs.scheduler import noise_base, noise_keys


class Replay:
    """Returns token t of an episode's response when the environment asks for action t of that episode.

    The noise key of an action is a function of (seed, episode id, t) only, so it identifies the token,
    whichever row plays the episode.

    Args:
        seed: of the stream of episodes.
        episode_ids: (n,) int64.
        responses: n lists of token ids.
        log_probs: n lists as long, recorded with the tokens.
        max_new_tokens: T, the environment's.
        sampling: sampling settings of the responses, for ``EpisodeBatch.sampling``.

    Raises:
        ValueError: if numbers of episode ids, responses or log-probs differ.
    """

    def __init__(
        self,
        *,
        seed: int,
        episode_ids: np.ndarray,
        responses: Sequence[Sequence[int]],
        log_probs: Sequence[Sequence[float]],
        max_new_tokens: int,
        sampling: Mapping[str, Any],
    ) -> None:
        if not len(episode_ids) == len(responses) == len(log_probs):
            raise ValueError(
                f"expected a response with log-probs for each of {len(episode_ids)} episodes, "
                f"got {len(responses)} responses and log-probs of {len(log_probs)}"
            )
        self._episode_ids = episode_ids
        self._steps = max_new_tokens + 1
        self._tokens = np.full((len(episode_ids), self._steps), -1, dtype=np.int64)
        self._log_probs = np.zeros(self._tokens.shape, dtype=np.float32)
        for row, (tokens, known) in enumerate(zip(responses, log_probs, strict=True)):
            if len(tokens) != len(known):
                raise ValueError(
                    f"episode {episode_ids[row]} must have a log-prob for each of its {len(tokens)} tokens, "
                    f"got {len(known)}"
                )
            kept = min(len(tokens), max_new_tokens)
            self._tokens[row, :kept], self._log_probs[row, :kept] = tokens[:kept], known[:kept]
        keys = noise_keys(noise_base(np.full_like(episode_ids, seed), episode_ids), self._steps).reshape(-1)
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self._sampling = dict(sampling)

    def sampling(self) -> dict[str, Any]:
        """Sampling settings of the responses."""
        return dict(self._sampling)

    def act(self, obs: Mapping[str, Any], key: Any, *, active: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The next tokens (N,) int64 and their log-probs (N,), 0 in rows that do not act.

        Raises:
            ValueError: if a key belongs to no episode here, or a response ends before the episode does.
        """
        acts = torch.as_tensor(active).cpu().numpy()
        asked = torch.as_tensor(key).cpu().numpy()[acts]
        place = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
        if (self._keys[place] != asked).any():
            raise ValueError("the environment asks for a token of an episode that has no response here")
        row, step = np.divmod(self._order[place], self._steps)
        tokens = self._tokens[row, step]
        if (tokens < 0).any():
            over = int((tokens < 0).argmax())
            raise ValueError(
                f"the response of episode {self._episode_ids[row[over]]} ends after {step[over]} tokens, "
                "but the episode continues; generate it with the environment's stop tokens and max_new_tokens"
            )
        chosen = np.zeros(len(acts), dtype=np.int64)
        log_probs = np.zeros(len(acts), dtype=np.float32)
        chosen[acts], log_probs[acts] = tokens, self._log_probs[row, step]
        device = torch.as_tensor(obs["input_ids"]).device
        return torch.from_numpy(chosen).to(device), {"log_prob": torch.from_numpy(log_probs).to(device)}
