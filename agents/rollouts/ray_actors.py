"""The actors of Ray rollouts: recipes of environment and policy, packed weights, and the actor class.

An actor keeps nothing that it could not make again: every call brings references to the recipe of environment
and policy and to the weights, which are fetched only where they are new. Shape letters: B episodes.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from textenv import scoring as scorer
from textenv.agents.policies.files import head_tensors
from textenv.agents.policies.heads import ValueHead
from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.pretrained import is_trusted, trusting
from textenv.rewards.registry import make_reward, spec_of
from textenv.rewards.remote import own_targets, register_targets
from textenv.rewards.wrappers import wrap_reward
from textenv.rollout import collect
from textenv.tasks.make import MadeTextVectorEnv

if TYPE_CHECKING:
    from textenv.agents.policies.language_policy import LanguagePolicy

PackedWeights = dict[str, np.ndarray]
"""Name -> the tensor's bytes, (n,) uint8; Ray's object store shares them without copies."""
SAMPLING = ("temperature", "top_k", "top_p", "greedy")
"""Attributes of ``DecodingPolicy`` that may change between two rollouts."""

HINT = (
    "give the actors an environment of their own by its gym id and arguments: "
    "RayRollouts(env='TextRLHF-v0', env_kwargs={...})"
)


@dataclass(frozen=True)
class EnvRecipe:
    """Recipe of an actor's environment: the parts of a native one, or a Gymnasium id."""

    num_envs: int
    """N, rows of the actor."""
    arguments: dict[str, Any]
    """Arguments of ``TextVectorEnv``, or of ``gym.make_vec``."""
    env_id: str | None = None
    """Gym id, if it is made by one."""

    def build(self, device: str) -> Any:
        """The environment, without the learner's rewards."""
        if self.env_id is not None:
            where = {} if device == "cpu" else {"device": device}
            return gym.make_vec(self.env_id, self.num_envs, **{**where, **self.arguments})
        return TextVectorEnv(self.num_envs, device=device, **self.arguments)


def env_recipe(
    envs: Any,
    *,
    num_envs: int | None = None,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> EnvRecipe:
    """The recipe for copies of the learner's environment.

    Args:
        envs: the learner's, wrapped or not.
        num_envs: rows of a copy; None is as many as ``envs`` has.
        env: gym id to make the copies by instead.
        env_kwargs: its arguments.

    Raises:
        ValueError: if ``envs`` has wrappers that a copy would lack, or is of a class of the user's own, and
            no ``env`` is given; or if a wrapper changes rewards step by step.
    """
    base = envs.unwrapped
    rows = base.num_envs if num_envs is None else num_envs
    foreign = scorer.foreign_reward_wrappers(envs)
    if foreign:
        raise ValueError(
            f"{type(foreign[0]).__name__} changes rewards in every step, which actors leave to the learner; "
            "use a reward term instead (rewards=[...])"
        )
    if env is not None:
        return EnvRecipe(rows, dict(env_kwargs or {}), env)
    wrappers = [layer for layer in scorer.walk(envs) if layer is not base and not hasattr(layer, "term")]
    if wrappers:
        raise ValueError(f"actors can't copy the wrapper {type(wrappers[0]).__name__}; {HINT}")
    if type(base) not in (TextVectorEnv, MadeTextVectorEnv):
        raise ValueError(f"actors can't copy an environment of the class {type(base).__name__}; {HINT}")
    arguments = {
        "prompts": base.prompts,
        "tokenizer": base.tokenizer,
        "max_new_tokens": base.max_new_tokens,
        "stop_token_ids": base.legality.stop_token_ids,
        "stop_strings": base.stop_strings.strings,
        "min_new_tokens": base.legality.min_new_tokens,
        "suppressed_tokens": base.legality.suppressed_tokens,
        "samples_per_prompt": base.samples_per_prompt,
        "shuffle": base.shuffle,
        **base.turn_arguments(),
    }
    return EnvRecipe(rows, arguments)


@dataclass(frozen=True)
class PolicyRecipe:
    """Recipe of an actor's policy, and of the rewards that it computes, if any."""

    policy_class: type[LanguagePolicy]
    """The class of the policy."""
    model: nn.Module
    """The model, or peft's view of it, on the CPU."""
    arguments: dict[str, Any]
    """Further arguments of the class."""
    reference: tuple[Any, dict[str, Tensor]] | None = None
    """Mode and weights of the reference, if rewards need it."""
    rewards: tuple[Any, ...] = ()
    """Specs of the rewards that actors score."""
    targets: dict[str, Any] = field(default_factory=dict)
    """Classes and functions that the user registered under the names in ``rewards``."""
    trust_remote_code: bool = False
    """Whether code that comes with the models of rewards may run."""

    def build(self, device: str) -> LanguagePolicy:
        """The policy; it acts and computes log-probs like the learner's."""
        policy = self.policy_class(self.model, device=device, **self.arguments)
        if self.reference is not None:
            mode, state = self.reference
            policy.reference(mode).load_state_dict({name: t.to(device) for name, t in state.items()})
        return policy


def policy_recipe(policy: LanguagePolicy, rewards: list[Any] | None = None) -> PolicyRecipe:
    """The recipe for copies of the learner's policy.

    Args:
        policy: the learner's.
        rewards: reward terms that the actors are to score, None if they do not score.

    Raises:
        ValueError: if the policy has a logits processor of somebody else's, or a reward can't be written
            down.
    """
    processor = policy.decoding.logits_processor
    if processor is not None and getattr(processor, "__self__", None) is not policy:
        raise ValueError("actors can't copy a policy whose logits processor is not its own method")
    settings = policy.settings()
    arguments = {
        name: value
        for name, value in settings.items()
        if name not in ("dtype", "train_layers", "gradient_checkpointing")
    }
    if policy.value_head is None:
        arguments["value_head"] = False  # a separate critic takes no part in acting
    elif not isinstance(policy.value_head, ValueHead):
        arguments["value_head"] = _on_cpu(policy.value_head)
    arguments |= {"tokenizer": policy.tokenizer, "cached": policy.decoding.cached}
    arguments["legality"] = policy.legality
    model = _on_cpu(policy.model if policy.peft is None else policy.peft)
    if rewards is None:
        return PolicyRecipe(type(policy), model, arguments)
    specs = []
    for term in rewards:
        if spec_of(term) is None:
            raise ValueError(
                f"actors can't make the reward {term.name!r}, which can't be written down; register it with "
                "register_reward and use its name, or let the learner score (score_in_actors=False)"
            )
        specs.append(spec_of(term))
    reference = None
    if any(term.needs_policy for term in rewards):
        own = policy.reference()
        reference = (own.mode, {name: tensor.cpu() for name, tensor in own.state_dict().items()})
    return PolicyRecipe(
        type(policy), model, arguments, reference, tuple(specs), own_targets(specs), is_trusted()
    )


def _on_cpu(module: nn.Module) -> nn.Module:
    """The module itself if it is on the CPU, else a copy there; sending it makes the snapshot."""
    if all(tensor.device.type == "cpu" for tensor in [*module.parameters(), *module.buffers()]):
        return module
    return copy.deepcopy(module).cpu()


def acting_tensors(policy: LanguagePolicy) -> dict[str, Tensor]:
    """Tensors that training changes and acting needs, by name: trained weights, heads except the critic."""
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    both = {**trained, **head_tensors(policy)}
    return {name: tensor for name, tensor in both.items() if not name.startswith("critic.")}


def pack(policy: LanguagePolicy) -> PackedWeights:
    """The weights as bytes in memory; on the CPU they are views, so send them at once."""
    return {
        name: tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for name, tensor in acting_tensors(policy).items()
    }


@torch.no_grad()
def unpack(policy: LanguagePolicy, weights: PackedWeights) -> None:
    """Load the weights into a copy."""
    own = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    for name, found in weights.items():
        target = own[name]
        target.copy_(torch.from_numpy(found.copy()).view(target.dtype).reshape(target.shape))
    policy.invalidate()


@dataclass(frozen=True)
class Work:
    """One call of an actor: the episodes to generate, and the weights."""

    recipe: tuple[Any, ...]
    """References to an ``EnvRecipe`` and a ``PolicyRecipe``."""
    weights: tuple[Any, ...]
    """Reference to ``PackedWeights``."""
    version: int
    """Number of these weights."""
    sampling: dict[str, Any]
    """Sampling settings: attribute of ``DecodingPolicy`` -> value."""
    seed: int
    """Seed of the episodes' random streams."""
    first_ticket: int
    """First episode id of all actors."""
    episodes: int
    """Number of episodes of all actors together."""
    rank: int
    """The actor generates the episodes ``first_ticket + rank``, ``first_ticket + rank + world_size``, ..."""
    world_size: int
    """Number of actors."""
    device: str
    """Device of the actor."""
    reward_state: dict[str, Any] | None = None
    """State of the reward terms, if the actor scores."""


class ActorResult(NamedTuple):
    """Result of ``RolloutActor.generate``."""

    episodes: EpisodeBatch
    """The actor's episodes, on the CPU."""
    pid: int
    """Id of the actor's process."""
    seconds: float
    """Seconds of the call."""


class RolloutActor:
    """Generates episodes with copies of the learner's environment and policy.

    Args:
        fetch: reference -> object, by default ``ray.get``.
    """

    def __init__(self, fetch: Callable[[Any], Any] | None = None) -> None:
        if fetch is None:
            import ray

            fetch = ray.get
        self._fetch = fetch
        self._recipe: tuple[Any, ...] | None = None
        self._weights: tuple[Any, ...] | None = None
        self._envs: Any = None
        self._policy: Any = None

    def pid(self) -> int:
        """Id of the actor's process."""
        return os.getpid()

    def generate(self, work: Work) -> ActorResult:
        """Generate this actor's episodes, each to its end."""
        started = time.perf_counter()
        if work.recipe != self._recipe:
            self._build(work)
        if work.weights != self._weights:
            unpack(self._policy, self._fetch(work.weights[0]))
            self._weights = work.weights
        for name, value in work.sampling.items():
            setattr(self._policy.decoding, name, value)
        with self._policy.decoding.without_values():
            episodes = collect(
                self._envs,
                self._policy,
                work.episodes,
                scoring="deferred",
                seed=work.seed,
                first_ticket=work.first_ticket,
                rank=work.rank,
                world_size=work.world_size,
                score=False,
            )
        episodes.sampling["weights_version"] = work.version
        if work.reward_state is not None:
            wrappers = scorer.reward_wrappers(self._envs)
            scorer.load_state_dict(wrappers, work.reward_state)
            scorer.score_episodes(episodes, wrappers)
        return ActorResult(episodes.to("cpu"), os.getpid(), time.perf_counter() - started)

    def _build(self, work: Work) -> None:
        env, policy = (self._fetch(reference) for reference in work.recipe)
        register_targets(policy.targets)
        self._policy, self._weights = policy.build(work.device), None
        self._envs = env.build(work.device)
        self._envs.unwrapped.bind(self._policy)
        with trusting(policy.trust_remote_code):
            for spec in policy.rewards:
                self._envs = wrap_reward(self._envs, make_reward(spec, allow_imports=True))
        self._recipe = work.recipe
