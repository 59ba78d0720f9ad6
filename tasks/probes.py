"""Probe tasks: five tiny problems with a known optimum, each failing for one kind of mistake in an agent.

Each reward is written token by token, so that its sum is the return; it is given at the end by default and at
each token with ``per_token=True``. The best possible return is 1 in all of them. BOS and PAD are actions,
too, which are never right. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import register_reward
from textenv.rewards.term import RewardTerm
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2
from textenv.tasks.probe_settings import settings_of_probe
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.utils.checks import check_at_least, check_choice, check_flag, check_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "123456789"


# -- rewards -------------------------------------------------------------------------------------------------


class ProbeReward(RewardTerm):
    """A reward that ``parts`` writes token by token; a subclass says how."""

    def __init__(self, *, per_token: bool = False) -> None:
        check_flag(f"{self.name}: per_token", per_token)
        self.per_token = per_token

    def parts(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) float: what each action earns, given the tokens up to it alone; 0 elsewhere."""
        raise NotImplementedError

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) if ``per_token``, else its sum (B,)."""
        parts = self.parts(episodes)
        return parts if self.per_token else parts.sum(-1)


@register_reward("probe-constant")
class ConstantReward(ProbeReward):
    """1/budget for every ``target`` among the tokens."""

    def __init__(self, target: str, budget: int, *, per_token: bool = False) -> None:
        super().__init__(per_token=per_token)
        check_at_least(f"{self.name}: budget", budget, 1)
        self.target, self.budget = target, budget

    def parts(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) 1/budget at each target."""
        target = self.tokenizer.convert_tokens_to_ids(self.target)
        return ((episodes.input_ids == target) & episodes.action_mask) / self.budget


@register_reward("probe-copy")
class CopyReward(ProbeReward):
    """1 if the first token of the response equals the prompt's token at ``position``."""

    def __init__(self, position: int, *, per_token: bool = False) -> None:
        super().__init__(per_token=per_token)
        check_at_least(f"{self.name}: position", position, 0)
        self.position = position

    def parts(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) 1 at a first token that is the right one."""
        wanted = episodes.input_ids[:, self.position, None]
        first = episodes.action_mask & (episodes.action_steps == 0)
        return (first & (episodes.input_ids == wanted)).float()


@register_reward("probe-count")
class CountReward(ProbeReward):
    """1/(n+1) for each token of 1, 2, ..., n, EOS until the first mistake; n is the prompt's last digit."""

    def parts(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) 1/(n+1) at each token of a faultless beginning."""
        ids, steps = episodes.input_ids, episodes.action_steps
        last = ids.gather(
            1, (episodes.prompt_lengths - 1).unsqueeze(-1)
        )  # (B, 1) token i stands for the digit i + 1
        n = last + 1
        eos = torch.full_like(ids, self.tokenizer.eos_token_id)
        expected = torch.where(steps < n, steps, eos)
        right = (ids == expected) & (steps <= n)
        faultless = (right | ~episodes.action_mask).long().cumprod(-1).bool()
        return (faultless & episodes.action_mask) / (n + 1)


@register_reward("probe-longest")
class LongestReward(ProbeReward):
    """1/budget for every token but EOS."""

    def __init__(self, budget: int, *, per_token: bool = False) -> None:
        super().__init__(per_token=per_token)
        check_at_least(f"{self.name}: budget", budget, 1)
        self.budget = budget

    def parts(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) 1/budget at each token that goes on."""
        return ((episodes.input_ids != self.tokenizer.eos_token_id) & episodes.action_mask) / self.budget


@register_reward("probe-end")
class EndReward(ProbeReward):
    """1 - t/budget for EOS as token t = 0, 1, ...; nothing without EOS."""

    def __init__(self, budget: int, *, per_token: bool = False) -> None:
        super().__init__(per_token=per_token)
        check_at_least(f"{self.name}: budget", budget, 1)
        self.budget = budget

    def parts(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) the later EOS comes, the less it earns."""
        ended = (episodes.input_ids == self.tokenizer.eos_token_id) & episodes.action_mask
        return ended * (1 - episodes.action_steps / self.budget)


# -- tasks ---------------------------------------------------------------------------------------------------


@register_task("probe-constant", settings=settings_of_probe("probe-constant"))
def build_constant(
    split: str = "train", letters: int = 4, target: str = "b", budget: int = 4, per_token: bool = False
) -> TaskData:
    """Always say one letter: the plainest bandit; an agent that fails it learns nothing at all."""
    alphabet = _letters(letters)
    check_choice("target", target, list(alphabet))
    spec = ["probe-constant", {"target": target, "budget": budget, "per_token": per_token}]
    return _probe(split, alphabet, list(alphabet), spec, budget)


@register_task("probe-copy", settings=settings_of_probe("probe-copy"))
def build_copy(
    split: str = "train", letters: int = 4, prompt_length: int = 3, position: int = 1, per_token: bool = False
) -> TaskData:
    """Say the prompt's second letter: does the policy see its prompt, and the reward the right one?"""
    check_at_least("prompt_length", prompt_length, 1)
    check_choice("position", position, range(prompt_length))
    alphabet = _letters(letters)
    prompts = ["".join(word) for word in itertools.product(alphabet, repeat=prompt_length)]
    spec = ["probe-copy", {"position": position, "per_token": per_token}]
    return _probe(split, alphabet, prompts, spec, 1, layers=2, width=64)


@register_task("probe-count", settings=settings_of_probe("probe-count"))
def build_count(split: str = "train", highest: int = 5, per_token: bool = False) -> TaskData:
    """Count from 1 to the prompt's number, then stop: credit over a sequence as long as the prompt says."""
    check_choice("highest", highest, range(1, len(_DIGITS) + 1))
    digits = _DIGITS[:highest]
    return _probe(
        split,
        digits,
        list(digits),
        ["probe-count", {"per_token": per_token}],
        highest + 1,
        layers=2,
        width=64,
    )


@register_task("probe-longest", settings=settings_of_probe("probe-longest"))
def build_longest(
    split: str = "train", letters: int = 4, budget: int = 8, per_token: bool = False
) -> TaskData:
    """Never stop: the best episodes are truncated by the budget, which must not cost them their reward."""
    alphabet = _letters(letters)
    spec = ["probe-longest", {"budget": budget, "per_token": per_token}]
    return _probe(split, alphabet, list(alphabet), spec, budget)


@register_task("probe-end", settings=settings_of_probe("probe-end"))
def build_end(split: str = "train", letters: int = 4, budget: int = 8, per_token: bool = False) -> TaskData:
    """Stop at once: EOS must be rewarded and trained like any other action."""
    alphabet = _letters(letters)
    spec = ["probe-end", {"budget": budget, "per_token": per_token}]
    return _probe(split, alphabet, list(alphabet), spec, budget)


def random_episodes(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    term: RewardTerm,
    *,
    max_new_tokens: int,
    episodes: int = 512,
    seed: int = 0,
) -> EpisodeBatch:
    """Episodes of a policy that draws every token equally often, with rewards: data for offline agents.

    Args:
        prompts: P prompts, taken in turn.
        tokenizer: its EOS ends an episode.
        term: reward term that scores the episodes; its tokenizer is set.
        max_new_tokens: budget of a response.
        episodes: how many.
        seed: of the draws.
    """
    random = np.random.default_rng(check_seed("seed", seed))
    eos = tokenizer.eos_token_id
    ids = tokenizer(list(prompts))["input_ids"]
    index = np.arange(episodes) % len(prompts)
    responses = []
    for drawn in random.integers(len(tokenizer), size=(episodes, max_new_tokens)).tolist():
        responses.append(drawn[: drawn.index(eos) + 1] if eos in drawn else drawn)
    ended = torch.tensor([response[-1] == eos for response in responses])
    batch = EpisodeBatch.from_ids(
        [ids[i] for i in index],
        responses,
        pad_token_id=tokenizer.pad_token_id,
        terminated=ended,
        truncated=~ended,
        prompt_index=torch.as_tensor(index, dtype=torch.int64),
    )
    term.tokenizer = tokenizer
    values = term.score(batch)
    batch.rewards = (
        torch.where(batch.action_mask, values, 0.0) if term.per_token else batch.at_last_action(values)
    )
    return batch


def _letters(count: int) -> str:
    check_choice("letters", count, range(2, len(_ALPHABET) + 1))
    return _ALPHABET[:count]


def _probe(
    split: str,
    alphabet: str,
    prompts: list[str],
    spec: Sequence[object],
    budget: int,
    *,
    layers: int = 1,
    width: int = 32,
) -> TaskData:
    check_choice("split", split, SPLITS)
    check_at_least("budget", budget, 1)
    tokenizer = letter_tokenizer(alphabet)
    return TaskData(
        prompts=prompts,
        tokenizer=tokenizer,
        rewards=[list(spec)],
        max_new_tokens=budget,
        optimum=1.0,
        model_config=partial(small_gpt2, tokenizer, layers=layers, width=width, heads=2, positions=64),
        make_demonstrations=partial(_demonstrations, prompts, tokenizer, list(spec), budget),
    )


def _demonstrations(
    prompts: list[str], tokenizer: PreTrainedTokenizerFast, spec: list[object], budget: int
) -> EpisodeBatch:
    from textenv.rewards.registry import make_reward

    return random_episodes(prompts, tokenizer, make_reward(spec), max_new_tokens=budget)
