"""The exact expected optimality of a policy on random walks: a sum over all walks that score, no sampling.

Only walks that reach the goal within nine nodes have a reward (2,104 of them for seed 1000), so only their
probabilities are needed; all other responses (missing edges, EOS too early, longer walks) have reward 0.
A language model is not Markov, so each walk is scored with its whole prefix, teacher-forced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.random_walks import DEFAULT_SEED, LETTERS, MAX_NODES, WalkGraph

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class WalkValues:
    """Exact expected results of a policy on the random walks of one graph. Means are over the 20 starts."""

    optimality: float
    """Expected optimality: the expected return of the task."""
    goal_rate: float
    """Probability of a valid walk to the goal of at most ten nodes."""
    optimal_rate: float
    """Probability of a walk as short as can be."""
    per_start: dict[str, float]
    """Start -> expected optimality."""


@torch.no_grad()
def exact_optimality(
    policy: Any,
    *,
    seed: int = DEFAULT_SEED,
    tokenizer: PreTrainedTokenizerBase | None = None,
    temperature: float = 1.0,
    batch_size: int = 512,
) -> WalkValues:
    """Compute what a policy earns on "random-walks" in expectation, sampling from its full distribution.

    Args:
        policy: one of
            - an object with ``log_prob(episodes) -> (B, L)``, as policies have it (its own temperature
            applies),
            - a causal LM, called as ``model(input_ids=(n, t), attention_mask=(n, t)).logits`` (n, t, W), W
              >= V, in eval mode, its first V logits taken,
            - a function ``episodes -> (B, L)`` log-probs, for distributions that are neither (a filtered or a
              shifted one).
        seed: of the graph.
        tokenizer: of the policy; by default the task's.
        temperature: divides a causal LM's logits.
        batch_size: walks per forward pass; those of one pass have one length, so there is no padding.

    Raises:
        TypeError: if the policy is none of the three.
        ValueError: if the temperature is not positive or log-probs have the wrong shape.

    Example:
        >>> def guess(episodes):  # every one of 24 tokens is equally likely
        ...     return -torch.log(torch.tensor(24.0)) * episodes.action_mask
        >>> values = exact_optimality(guess)
        >>> values.per_start["d"] > values.per_start["m"]  # d is one step from the goal, m three
        True
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    graph = WalkGraph.from_seed(seed)
    tokenizer = letter_tokenizer(LETTERS) if tokenizer is None else tokenizer
    legality = TokenConstraints(
        vocab_size=len(tokenizer),
        stop_token_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
    )
    log_probs = _log_prob_function(policy, legality, temperature)

    optimality = dict.fromkeys(graph.starts, 0.0)
    goal = optimal = 0.0
    for walks in _groups(graph.walks_to_goal(MAX_NODES), batch_size):
        episodes = EpisodeBatch.from_texts(
            [walk[0] for walk in walks],
            [walk[1:] for walk in walks],
            tokenizer,
            append_eos=False,
            sampling=legality.to_sampling(),
        )
        found = log_probs(episodes)
        if tuple(found.shape) != tuple(episodes.input_ids.shape):
            raise ValueError(
                f"log-probs must have shape {tuple(episodes.input_ids.shape)}, got {tuple(found.shape)}"
            )
        chances = torch.where(episodes.action_mask, found.double().cpu(), 0.0).sum(-1).exp().tolist()
        for walk, chance in zip(walks, chances, strict=True):
            optimality[walk[0]] += chance * graph.optimality(walk)
            goal += chance
            optimal += chance * (len(walk) == graph.shortest[walk[0]])
    starts = len(graph.starts)
    return WalkValues(
        optimality=sum(optimality.values()) / starts,
        goal_rate=goal / starts,
        optimal_rate=optimal / starts,
        per_start=optimality,
    )


def _groups(walks: tuple[str, ...], batch_size: int) -> list[list[str]]:
    """Batches of walks of one length."""
    groups = []
    for length in sorted({len(walk) for walk in walks}):
        same = [walk for walk in walks if len(walk) == length]
        groups += [same[i : i + batch_size] for i in range(0, len(same), batch_size)]
    return groups


def _log_prob_function(
    policy: Any, legality: TokenConstraints, temperature: float
) -> Callable[[EpisodeBatch], Tensor]:
    if callable(getattr(policy, "log_prob", None)):
        return policy.log_prob
    if isinstance(policy, nn.Module):
        return lambda episodes: _model_log_probs(policy, episodes, legality, temperature)
    if callable(policy):
        return policy
    raise TypeError(
        "policy must have log_prob(episodes), be a causal LM, or be a function of episodes, "
        f"got {type(policy).__name__}"
    )


def _model_log_probs(
    model: nn.Module, episodes: EpisodeBatch, legality: TokenConstraints, temperature: float
) -> Tensor:
    """(B, L) log-probs of the actions of a causal LM, teacher-forced in eval mode."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    episodes = episodes.to(device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        output = model(
            input_ids=episodes.input_ids[:, :-1], attention_mask=episodes.attention_mask[:, :-1].long()
        )
    finally:
        for module in training:
            module.training = True
    logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
    logits = legality.apply(logits / temperature, episodes.turn_steps[:, 1:])
    chosen = episodes.input_ids[:, 1:].unsqueeze(-1)
    found = logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(-1)
    return torch.where(episodes.action_mask, torch.nn.functional.pad(found, (1, 0)), 0.0)
