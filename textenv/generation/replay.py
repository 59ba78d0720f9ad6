"""Playing responses that were written elsewhere: a policy that says them token by token.

So the environment sees them as it sees any policy's actions, and judges endings, tickets and rewards. Shape
letters: N environment rows, n tickets, T tokens of the longest response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.envs.scheduler import noise_base, noise_keys


class Replay:
    """Says token t of a ticket's response where the environment asks for its draw t.

    An environment names every draw by a key, which is a function of (seed, ticket, t) alone; so the key tells
    which token of which response is due, whatever row plays it.

    Args:
        seed: of the tickets' stream.
        tickets: (n,) int64.
        responses: n lists of token ids.
        log_probs: n lists as long, recorded with the tokens.
        max_new_tokens: T, the environment's.
        sampling: how the responses were sampled, for ``EpisodeBatch.sampling``.

    Raises:
        ValueError: if numbers of tickets, responses or log-probs differ.
    """

    def __init__(
        self,
        *,
        seed: int,
        tickets: np.ndarray,
        responses: Sequence[Sequence[int]],
        log_probs: Sequence[Sequence[float]],
        max_new_tokens: int,
        sampling: Mapping[str, Any],
    ) -> None:
        if not len(tickets) == len(responses) == len(log_probs):
            raise ValueError(
                f"expected a response with log-probs for each of {len(tickets)} tickets, "
                f"got {len(responses)} responses and log-probs of {len(log_probs)}"
            )
        self._tickets = tickets
        self._steps = max_new_tokens + 1
        self._tokens = np.full((len(tickets), self._steps), -1, dtype=np.int64)
        self._log_probs = np.zeros(self._tokens.shape, dtype=np.float32)
        for row, (tokens, known) in enumerate(zip(responses, log_probs, strict=True)):
            if len(tokens) != len(known):
                raise ValueError(
                    f"ticket {tickets[row]} must have a log-prob for each of its {len(tokens)} tokens, "
                    f"got {len(known)}"
                )
            kept = min(len(tokens), max_new_tokens)
            self._tokens[row, :kept], self._log_probs[row, :kept] = tokens[:kept], known[:kept]
        keys = noise_keys(noise_base(np.full_like(tickets, seed), tickets), self._steps).reshape(-1)
        self._order = np.argsort(keys)
        self._keys = keys[self._order]
        self._sampling = dict(sampling)

    def sampling(self) -> dict[str, Any]:
        """How the responses were sampled."""
        return dict(self._sampling)

    def act(self, obs: Mapping[str, Any], key: Any, *, active: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokens that are due: (N,) int64 and their log-probs (N,), 0 in rows that do not act.

        Raises:
            ValueError: if a key is of no ticket here, or a response is over where the environment goes on.
        """
        acts = torch.as_tensor(active).cpu().numpy()
        asked = torch.as_tensor(key).cpu().numpy()[acts]
        place = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
        if (self._keys[place] != asked).any():
            raise ValueError("the environment asks for a draw of a ticket that has no response here")
        ticket, step = np.divmod(self._order[place], self._steps)
        tokens = self._tokens[ticket, step]
        if (tokens < 0).any():
            over = int((tokens < 0).argmax())
            raise ValueError(
                f"the response to ticket {self._tickets[ticket[over]]} is over after {step[over]} tokens, "
                "where the environment goes on; whoever wrote it must know its stop tokens and budget"
            )
        chosen = np.zeros(len(acts), dtype=np.int64)
        log_probs = np.zeros(len(acts), dtype=np.float32)
        chosen[acts], log_probs[acts] = tokens, self._log_probs[ticket, step]
        device = torch.as_tensor(obs["input_ids"]).device
        return torch.from_numpy(chosen).to(device), {"log_prob": torch.from_numpy(log_probs).to(device)}
