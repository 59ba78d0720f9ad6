"""The KL penalty, a reward per token that keeps the policy close to a reference model.

Shape letters: B episodes, L tokens, S rows that acted in a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textenv.envs.step_buffer import RAW
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.kl import KL_ESTIMATORS, kl_estimate
from textenv.modeling.log_probs import token_log_probs
from textenv.modeling.model_checks import check_causal_lm, check_decoder, check_size
from textenv.modeling.pretrained import is_trusted, load_pretrained
from textenv.modeling.split_model import eval_mode
from textenv.modeling.whole_weights import load_decoder
from textenv.rewards.full_kl import full_kl
from textenv.rewards.registry import register_reward
from textenv.rewards.retokenize import named_model
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError, quote
from textenv.utils.checks import check_at_least, check_choice, check_number, check_positive

CONTROLLERS = ("fixed", "adaptive")
ESTIMATORS = (*KL_ESTIMATORS, "full")


def adapted_coefficient(
    coef: float, kl: float, episodes: int, *, target: float = 6.0, horizon: float = 10_000.0
) -> float:
    """One step of the adaptive controller (Ziegler et al. 2019, section 2.2).

    Args:
        coef: the coefficient so far.
        kl: mean KL per sequence, in nats.
        episodes: number of episodes in that mean.
        target: desired KL per sequence, in nats.
        horizon: episodes over which the coefficient may change by about 20 %.

    Returns:
        coef * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon), and at least coef / 10, so that
        many episodes cannot change its sign.

    Example:
        >>> round(adapted_coefficient(0.05, kl=12.0, episodes=1000), 6)
        0.051
        >>> round(adapted_coefficient(0.05, kl=5.7, episodes=1000), 6)
        0.04975
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * max(1.0 + error * episodes / horizon, 0.1)


@register_reward("kl")
class KLPenalty(RewardTerm):
    """Penalty of ``coef`` times the KL divergence from a reference model, per token.

    Deferred scoring computes both sides with the same teacher-forced pass on the same episodes, so the
    penalty of a policy that equals its reference is exactly 0. Immediate scoring uses the log-probs that were
    recorded for the step (``envs.unwrapped.record``); without them it runs the policy on the episode so far.

    Args:
        coef: weight, reward per nat.
        controller: "fixed", or "adaptive": the coefficient is adjusted for a KL of ``target`` per sequence.
        target: nats per sequence, for "adaptive".
        horizon: episodes, for "adaptive".
        estimator: "k1", "k2" or "k3" from the sampled tokens (Schulman 2020, "Approximating KL
            divergence"), or "full" from the distributions over all tokens.
        reference: None for the policy's own reference (``policy.reference()``), a model name or folder, a
            causal language model, or an object with ``log_prob(episodes) -> (B, L)``.
        max_tokens: padded tokens of one forward pass, for a model as reference and for "full".

    Raises:
        ValueError: if an argument is out of range, or the files of ``reference`` are damaged.
        OSError: if there is no model of the name ``reference``.
    """

    per_token = True
    needs_policy = True

    def __init__(
        self,
        coef: float = 0.05,
        *,
        controller: str = "fixed",
        target: float = 6.0,
        horizon: float = 10_000.0,
        estimator: str = "k1",
        reference: str | os.PathLike[str] | nn.Module | Any | None = None,
        max_tokens: int = 16_384,
    ) -> None:
        check_number("kl: coef", coef, 0)
        check_choice("kl: controller", controller, CONTROLLERS)
        check_choice("kl: estimator", estimator, ESTIMATORS)
        for field, value in (("target", target), ("horizon", horizon)):
            check_positive(f"kl: {field}", value)
        check_at_least("kl: max_tokens", max_tokens, 1)
        self.coef = float(coef)
        self.controller, self.target, self.horizon = controller, target, horizon
        self.estimator, self.reference, self.max_tokens = estimator, reference, max_tokens
        self._env: Any = None
        self._loaded: nn.Module | None = None
        self._trusted = is_trusted()  # the reference is loaded later, maybe outside the block that allows it
        if isinstance(reference, str | os.PathLike):
            from transformers import AutoConfig

            self.reference = reference = named_model(reference)
            # An unknown name is an error here, not after the first rollout.
            if not (Path(reference) / "adapter_config.json").is_file():
                config = load_pretrained(AutoConfig, reference, what="kl: reference")
                check_decoder(config, "kl: the reference", type(config).__name__)

    # -- scoring -------------------------------------------------------------------------------------------

    @property
    def part_names(self) -> tuple[str, ...]:
        """The KL itself, before the coefficient."""
        return ("kl",)

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L): minus ``coef`` times the KL at each action."""
        return self.score_parts(episodes)[0]

    @torch.no_grad()
    def score_parts(self, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty, and the KL in nats as part "kl"."""
        kl = self.kl(episodes)
        return -self.coef * kl, {"kl": kl}

    @torch.no_grad()
    def kl(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) KL of policy and reference in nats at each action, 0 elsewhere."""
        policy = self._policy()
        if self.estimator == "full":
            reference = self._reference_model(episodes) if self.reference is not None else policy.reference()
            temperature, legality = self._sampling(episodes)

            def full(part: EpisodeBatch) -> Tensor:
                return full_kl(policy, reference, part, temperature=temperature, legality=legality)

            return self._in_parts(episodes, full)
        # The whole batch at once: a policy splits it itself, and may reuse the result for the agent.
        log_probs = policy.log_prob(episodes)
        self._check_possible(log_probs, episodes)
        ref_log_probs = self._reference_log_prob(episodes).to(log_probs)
        value = kl_estimate(log_probs, ref_log_probs, self.estimator)
        return torch.where(episodes.action_mask, value.to(episodes.device), 0.0)

    def _in_parts(self, episodes: EpisodeBatch, function: Callable[[EpisodeBatch], Tensor]) -> Tensor:
        """(B, L) from a function of parts of at most ``max_tokens`` padded tokens."""
        whole = torch.zeros(episodes.input_ids.shape, device=episodes.device)
        for index, part in episodes.token_budget_batches(self.max_tokens):
            whole[index.to(whole.device), : part.input_ids.shape[1]] = function(part).to(whole)
        return whole

    @torch.no_grad()
    def step_parts(self, env: Any) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Use the log-probs recorded for this step; None (score the prefix) without them."""
        recorded = env.recorded("log_prob")
        if recorded is None or self.estimator == "full":
            return None
        episodes = env.stepped
        reference = self._reference_log_prob(episodes)  # (S, L)
        ref_log_probs = reference.gather(1, episodes.last_action.unsqueeze(-1)).squeeze(-1)
        log_probs = torch.as_tensor(recorded, device=ref_log_probs.device)[env.stepped_rows]
        kl = kl_estimate(log_probs.to(ref_log_probs), ref_log_probs, self.estimator)
        return -self.coef * kl, {"kl": kl}

    # -- state ---------------------------------------------------------------------------------------------

    def update(self, episodes: EpisodeBatch) -> None:
        """Update an adaptive coefficient from the mean KL per sequence of these episodes."""
        if self.controller == "fixed":
            return
        kl = episodes.reward_terms.get(f"{RAW}kl")
        if kl is None:
            kl = self.kl(episodes)
        per_sequence = float(torch.where(episodes.action_mask, kl, 0.0).sum(-1).double().mean())
        self.coef = adapted_coefficient(
            self.coef, per_sequence, len(episodes), target=self.target, horizon=self.horizon
        )

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the coefficient."""
        self.coef = float(state["coef"])

    # -- policy and reference ------------------------------------------------------------------------------

    def bind(self, env: Any) -> None:
        """Bind to an environment, whose policy may be bound later.

        Raises:
            ValueError: if the reference is no causal LM, or its vocabulary or maximum length is too small.
        """
        super().bind(env)
        self._env = env
        if isinstance(self.reference, nn.Module) and hasattr(self.reference, "config"):
            self._check_reference(self.reference, env.legality.vocab_size, env.max_length)

    def prepare(self, env: Any, scoring: str) -> None:
        """Check before an episode that it can be scored.

        Raises:
            RewardError: if the policy is needed and none is bound.
        """
        if self.reference is None or scoring == "deferred" or self.estimator == "full":
            self._policy()

    def close(self) -> None:
        """Release a loaded reference model."""
        self._loaded = None

    def _policy(self) -> Any:
        policy = None if self._env is None else self._env.policy
        if policy is None:
            raise RewardError(
                f"reward {self.name!r} needs the policy: call envs.unwrapped.bind(policy) before reset "
                "(agents do); or give the reward its own reference and call "
                "envs.unwrapped.record(log_prob=...) before each step. Environments in a SyncVectorEnv or "
                "AsyncVectorEnv have no policy: make the native one (gym.make_vec without vectorization_mode)"
            )
        wanted = ["log_prob"] + (["reference"] if self.reference is None else [])
        missing = [name for name in wanted if not hasattr(policy, name)]
        if missing:
            raise RewardError(
                f"reward {self.name!r} needs a policy with {'(), '.join(wanted)}(), "
                f"got {type(policy).__name__} without {missing[0]}()"
            )
        return policy

    def _check_possible(self, log_probs: Tensor, episodes: EpisodeBatch) -> None:
        """Refuse actions that the policy can't have chosen: the KL would be inf - inf."""
        impossible = episodes.action_mask & log_probs.to(episodes.device).isneginf()
        if bool(impossible.any()):
            row, place = impossible.nonzero()[0].tolist()
            token = int(episodes.input_ids[row, place])
            raise RewardError(
                f"reward {self.name!r}: the policy gives probability 0 to token {token} "
                f"at column {place}, so it did not choose it (see envs.unwrapped.legality): "
                f"{quote(episodes, row, self)}"
            )

    def _reference_log_prob(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) log-probs under the reference."""
        if self.reference is None:
            return self._policy().reference().log_prob(episodes)
        reference: Any = self.reference
        if hasattr(reference, "log_prob"):
            return reference.log_prob(episodes)
        model = self._reference_model(episodes)
        temperature, legality = self._sampling(episodes)

        def log_probs(part: EpisodeBatch) -> Tensor:
            with eval_mode(list(model.modules())):
                return token_log_probs(model, part, temperature=temperature, legality=legality).log_probs

        return self._in_parts(episodes, log_probs)

    def _sampling(self, episodes: EpisodeBatch) -> tuple[float, TokenConstraints | None]:
        """The policy's temperature and token constraints, which also apply to the reference."""
        legality = TokenConstraints.from_sampling(episodes.sampling)
        temperature = episodes.sampling.get("temperature")
        policy: Any = None if self._env is None else self._env.policy
        if temperature is None and hasattr(policy, "sampling"):
            temperature = policy.sampling().get("temperature")
        return 1.0 if temperature is None else float(temperature), legality

    def _reference_model(self, episodes: EpisodeBatch) -> Any:
        """The reward's own reference, checked against the episodes; one given by name is loaded on first use.

        Raises:
            ValueError: if the model is not a causal LM, or has too few logits or positions for the episodes.
        """
        found = self.reference
        if isinstance(found, str):
            if self._loaded is None:
                model = load_decoder(found, what="kl: reference", trust_remote_code=self._trusted)
                self._loaded = model.requires_grad_(False).eval().to(episodes.device)
            found = self._loaded
        if isinstance(found, nn.Module) and hasattr(found, "config"):
            vocabulary = int(episodes.sampling.get("vocab_size", 1))
            length = int(episodes.lengths.max()) if len(episodes) else 0
            self._check_reference(found, vocabulary, length)
        return found

    @staticmethod
    def _check_reference(model: nn.Module, vocab_size: int, length: int) -> None:
        check_causal_lm(model, "kl: the reference")
        check_size(model, "kl: the reference", vocab_size=vocab_size, length=length)
