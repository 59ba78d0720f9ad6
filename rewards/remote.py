"""A reward computed by Ray actors: each holds the wrapped term, such as a reward model, and scores a part.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.pretrained import is_trusted, trusting
from textenv.rewards.registry import (
    OPTIONS,
    REWARDS,
    make_reward,
    normalize_reward_specs,
    register_reward,
)
from textenv.rewards.term import RewardTerm
from textenv.utils.checks import check_at_least, check_number, check_positive
from textenv.utils.names import strings_in
from textenv.utils.ray_session import connect, gather, start_actors, stop_actors


class TermFacts(NamedTuple):
    """Properties of a term in another process."""

    per_token: bool
    """Whether the term gives a reward per token."""
    needs_policy: bool
    """Whether the term needs the policy."""
    part_names: tuple[str, ...]
    """Names of its raw parts."""
    has_state: bool
    """Whether the term has a state."""


def own_targets(specs: Any) -> dict[str, Any]:
    """The rewards in ``specs`` that the user registered, for ``register_targets``.

    Other processes have to register them, too.

    Returns:
        Name -> (class or function, options of ``register_reward``).
    """
    found = {name: REWARDS[name] for name in strings_in(specs) if name in REWARDS}
    return {
        name: (target, OPTIONS.get(name, {}))
        for name, target in found.items()
        if not target.__module__.startswith("textenv.")
    }


def register_targets(targets: Mapping[str, Any]) -> None:
    """Register the result of ``own_targets`` in another process."""
    for name, (target, options) in targets.items():
        register_reward(name, override=True, **options)(target)


def _holds_values(state: Any) -> bool:
    """Whether a state contains values; that of a term with stateless parts is nested, but empty."""
    if isinstance(state, Mapping):
        return any(map(_holds_values, state.values()))
    return any(map(_holds_values, state)) if isinstance(state, list | tuple) else True


class RewardActor:
    """Holds a reward term and scores the episodes that it receives.

    Args:
        spec: of the term.
        targets: rewards that the user registered, by name.
        trust_remote_code: whether code that comes with a model may run.
        fetch: reference -> object, by default ``ray.get``.
    """

    def __init__(
        self,
        spec: Any,
        targets: Mapping[str, Any],
        trust_remote_code: bool = False,
        fetch: Callable[[Any], Any] | None = None,
    ) -> None:
        if fetch is None:
            import ray

            fetch = ray.get
        self._fetch = fetch
        register_targets(targets)
        with trusting(trust_remote_code):
            self._term = make_reward(spec, allow_imports=True)
        self._joined: tuple[Any, ...] = ()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def pid(self) -> int:
        """Id of the actor's process."""
        return os.getpid()

    def facts(self) -> TermFacts:
        """Properties of the term."""
        term = self._term
        return TermFacts(term.per_token, term.needs_policy, term.part_names, _holds_values(term.state_dict()))

    def bind(self, joined: tuple[Any, ...]) -> None:
        """Bind the term to the environment whose tokenizer and columns ``joined`` refers to, if any."""
        if joined != self._joined:
            tokenizer, columns = self._fetch(joined[0])
            prompts = SimpleNamespace(columns=dict.fromkeys(columns))
            device = torch.device(self._device)
            self._term.bind(SimpleNamespace(tokenizer=tokenizer, prompts=prompts, device=device))
            self._joined = joined

    def score_parts(
        self, episodes: EpisodeBatch, joined: tuple[Any, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score (B,) or (B, L) and parts of B episodes of the environment that was ``joined``."""
        self.bind(joined)
        values, parts = self._term.score_parts(episodes.to(self._device))
        return values.cpu(), {name: part.cpu() for name, part in parts.items()}


@register_reward("remote")
class Remote(RewardTerm):
    """Another reward, computed by Ray actors: a reward model with its own processes or GPUs.

        rewards=[["remote", {"of": ["reward-model", {"model": "my-model"}], "num_gpus": 1}]]

    Episodes are distributed to the actors; one that dies is replaced, and its episodes are scored again. The
    wrapped reward cannot have state or need the policy: put shaping terms around this term.

    Args:
        of: the reward, a name or ``[name, {arguments}]``; it is made in the actors only.
        num_actors: number of actors.
        num_cpus: CPUs that Ray reserves for each.
        num_gpus: GPUs that Ray reserves for each.
        max_restarts: how often each may be replaced.
        start_timeout: time limit for their start, in seconds.
        address: of a Ray cluster; None is that of ``RAY_ADDRESS``, else one on this machine.

    Raises:
        ValueError: if an argument is out of range, ``of`` has no spec, has a state, or needs the
            policy.
        ImportError: without ray.
    """

    def __init__(
        self,
        of: Any,
        *,
        num_actors: int = 1,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        max_restarts: int = 3,
        start_timeout: float = 300.0,
        address: str | None = None,
    ) -> None:
        check_at_least("remote: num_actors", num_actors, 1)
        check_at_least("remote: max_restarts", max_restarts, 0)
        for field, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            check_number(f"remote: {field}", value, 0)
        check_positive("remote: start_timeout", start_timeout)
        (self.of,) = normalize_reward_specs([of], allow_imports=True)
        self._ray = ray = connect(address)
        self._actors = start_actors(
            ray,
            RewardActor,
            num_actors,
            arguments=(self.of, own_targets(self.of), is_trusted()),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=max_restarts,
            timeout=start_timeout,
        )
        self._facts: TermFacts = gather(ray, [self._actors[0].facts.remote()])[0]
        self._joined: tuple[Any, ...] = ()
        found = {"has a state": self._facts.has_state, "asks the policy": self._facts.needs_policy}
        problems = [problem for problem, there in found.items() if there]
        if problems:
            self.close()
            raise ValueError(
                "remote: of must be a reward that has no state and asks no policy, but "
                f"{self.of[0]!r} {' and '.join(problems)}; put the remote term inside it"
            )

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        """Whether the term gives a reward per token."""
        return self._facts.per_token

    @property
    def part_names(self) -> tuple[str, ...]:
        """The raw parts of the reward."""
        return self._facts.part_names

    def bind(self, env: Any) -> None:
        """Bind to an environment, here and in the actors."""
        super().bind(env)
        self._joined = (self._ray.put((env.tokenizer, tuple(env.prompts.columns))),)
        gather(self._ray, [actor.bind.remote(self._joined) for actor in self._actors])

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) or (B, L), as in the wrapped reward."""
        return self.score_parts(episodes)[0]

    def score_parts(self, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The wrapped reward's values and parts.

        Raises:
            RewardError: if the reward fails there.
            textenv.utils.ray_session.ActorsLostError: if an actor died too often.
        """
        shares = [rows for rows in torch.arange(len(episodes)).tensor_split(len(self._actors)) if len(rows)]
        calls = [
            actor.score_parts.remote(episodes.select(rows).to("cpu"), self._joined)
            for actor, rows in zip(self._actors, shares, strict=False)
        ]
        found = gather(self._ray, calls)
        width = episodes.input_ids.shape[1]
        values = _joined([value for value, _ in found], width, episodes.device)
        parts = {
            name: _joined([share[name] for _, share in found], width, episodes.device)
            for name in self.part_names
        }
        return values, parts

    def close(self) -> None:
        """Stop the actors."""
        stop_actors(self._ray, self._actors)
        self._actors = []


def _joined(shares: list[Tensor], width: int, device: torch.device) -> Tensor:
    """Concatenate parts: (B,), or (B, L) padded to ``width``."""
    if shares[0].dim() == 2:
        shares = [torch.nn.functional.pad(share, (0, width - share.shape[1])) for share in shares]
    return torch.cat(shares).to(device)
