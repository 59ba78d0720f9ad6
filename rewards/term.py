"""`RewardTerm`: one reward, a function of episodes.

Shape letters: B episodes, L tokens, S environment rows that acted in a step.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from textenv.episodes.conversations import REPLIES, TURNS
from textenv.scoring import RewardError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textenv.episodes.batch import EpisodeBatch


class RewardTerm:
    """Base class of rewards: implement ``score``; everything else has a working default.

    ``score`` must depend only on the episodes and the term's state, and the state may change only in
    ``update``. Then rewards computed step by step equal rewards computed afterwards in large batches.

    Example:
        >>> import torch
        >>> from textenv.episodes.batch import EpisodeBatch
        >>> class Brevity(RewardTerm):
        ...     def score(self, episodes):
        ...         return -0.01 * episodes.response_lengths
        >>> Brevity().score(EpisodeBatch.from_ids([[1], [1]], [[2, 3], [2]])).tolist()
        [-0.019999999552965164, -0.009999999776482582]
    """

    name: str = ""
    """Name in specs, metrics and errors: set by ``register_reward``, else derived from the class name."""
    per_token: bool = False
    """False: ``score`` returns (B,), the reward at the last action. True: (B, L), a reward per token. A
    per-token term must be causal: the value at a token depends only on tokens up to it."""
    needs_policy: ClassVar[bool] = False
    """Whether the term asks the policy for log-probs. No policy can be bound to environments inside a Sync-
    or AsyncVectorEnv, so there ``prepare`` raises."""
    nested: ClassVar[Mapping[str, str]] = {}
    """Constructor arguments that hold reward specs: name -> "one" or "many"."""

    special_tokens: bool = False
    """Whether ``completion_texts`` keeps special tokens, such as EOS or the marks of a chat template."""

    bound_tokenizer: PreTrainedTokenizerBase | None = None
    """The tokenizer of the environment, or None before ``bind``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the constructor's arguments, from which ``spec_of`` makes a spec."""
        term = super().__new__(cls)
        term._arguments = (args, kwargs)
        return term

    def __init__(self) -> None:  # so that a class without its own constructor refuses arguments
        super().__init__()

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    # -- what a reward is ----------------------------------------------------------------------------------

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """The reward of each episode, a pure function of the episodes and the term's state.

        Args:
            episodes: B >= 1 episodes. A per-token term also sees episodes in progress.

        Returns:
            (B,) float, the reward at the last action; or, if ``per_token``, (B, L) float, of which only
            entries at actions count.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score(episodes)")

    def score_parts(self, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The score and its raw inputs, which are stored as ``raw/NAME`` and are not part of the reward.

        Returns:
            ``score(episodes)`` and, for each of ``part_names``, a tensor of the same shape.
        """
        return self.score(episodes), {}

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the raw parts that ``score_parts`` returns."""
        return ()

    def step_score(self, env: Any) -> Tensor | None:
        """A cheaper score of the last token, for a per-token term; None means "score the prefix instead".

        Args:
            env: the unwrapped environment, after its step; ``env.stepped`` are the S episodes that got a
                token.

        Returns:
            (S,) float, or None.
        """
        return None

    def step_parts(self, env: Any) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Like ``step_score``, with the raw parts, (S,) each."""
        values = self.step_score(env)
        return None if values is None else (values, {})

    # -- state ---------------------------------------------------------------------------------------------

    def update(self, episodes: EpisodeBatch) -> None:
        """Update the state; called once per rollout with the scored episodes in order of id.

        ``episodes.reward_terms`` holds this term's own parts under ``raw/NAME``.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of ``state_dict``."""
        if state:
            raise ValueError(f"reward {self.name!r} has no state, got {sorted(state)}")

    # -- its environment -----------------------------------------------------------------------------------

    def bind(self, env: Any) -> None:
        """Bind to an (unwrapped) environment: use its tokenizer."""
        self.bound_tokenizer = env.tokenizer

    def prepare(self, env: Any, scoring: str) -> None:
        """Called at every reset; raise errors here that would otherwise occur during an episode.

        Args:
            env: the unwrapped environment.
            scoring: "immediate" or "deferred".
        """

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The environment's tokenizer.

        Raises:
            RewardError: if the term is not bound to an environment and has no tokenizer.
        """
        if self.bound_tokenizer is None:
            raise RewardError(
                f"reward {self.name!r} needs a tokenizer: wrap an environment with it, or set term.tokenizer"
            )
        return self.bound_tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.bound_tokenizer = tokenizer

    def completion_texts(self, episodes: EpisodeBatch) -> list[str]:
        """The B responses as text, with special tokens if ``special_tokens`` is set.

        Raises:
            RewardError: if the term has no tokenizer.
        """
        return episodes.completion_texts(self.tokenizer, skip_special_tokens=not self.special_tokens)

    def answer_texts(self, episodes: EpisodeBatch) -> list[str]:
        """The B answers as text: the responses, or with a partner the policy's last turns.

        Raises:
            RewardError: if the term has no tokenizer.
        """
        extras = episodes.extras
        if TURNS in extras and REPLIES in extras:
            return [said[-1] if said else "" for said in extras[TURNS]]
        return self.completion_texts(episodes)

    def close(self) -> None:
        """Free the term's resources (models, processes)."""

    # -- arguments -----------------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name, as they were given."""
        args, kwargs = self._arguments
        signature = inspect.signature(type(self).__init__)
        bound = signature.bind(self, *args, **kwargs).arguments
        named = dict(list(bound.items())[1:])
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name, {}))
        return named

    def __repr__(self) -> str:
        listed = ", ".join(f"{key}={value!r}" for key, value in self.arguments().items())
        return f"{type(self).__name__}({listed})"
