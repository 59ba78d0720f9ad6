"""Check that good answers are rewarded and bad ones are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.audit.findings import Finding
from textenv.tasks.audit.subject import Subject
from textenv.tasks.players import Player, ScriptedPolicy

_ERRORS = 4.0
"""Standard errors by which a mean may differ from the known optimum."""


def check_player(subject: Subject) -> list[Finding]:
    """The scripted player earns more than garbage, and about the optimum if that is known."""
    with subject.envs() as envs:
        base, data = envs.unwrapped, envs.unwrapped.task_data
        player = subject.given_player
        if player is None and data is not None:
            player = data.player
        if player is None:
            text = "the task has no scripted player (TaskData.make_player, or the argument player)"
            return [Finding("player", "skipped", text)]
        counting = _Counting(player, base.tokenizer)
        policy = ScriptedPolicy([counting], base.tokenizer, base.max_turn_tokens)
        batch = subject.collect(envs, policy)
        optimum = None if data is None or subject.arguments.get("rewards") is not None else data.optimum
        limit = base.max_turn_tokens
    subject.played["player"] = batch
    mean = batch.returns.mean().item()
    garbage = {name: b.returns.mean().item() for name, b in subject.played.items() if name != "player"}
    best = max(garbage, key=lambda name: garbage[name])
    subject.figures["returns"] = {"player": mean, **garbage}
    findings = []
    if counting.longest > limit:
        text = f"the player's longest turn has {counting.longest} tokens, but a turn has {limit} at most"
        findings.append(Finding("player", "error", text))
    if not mean > garbage[best]:
        text = f"the player's mean return is {mean:.4g}, {best} answers have {garbage[best]:.4g}"
        findings.append(Finding("player", "error", text))
    if optimum is not None:
        spread = max(b.returns.max().item() for b in subject.played.values())
        spread -= min(b.returns.min().item() for b in subject.played.values())
        findings += _against_optimum(batch, optimum, spread)
    if not findings:
        known = "" if optimum is None else f", the optimum {optimum:.4g}"
        text = f"the player's mean return is {mean:.4g}, of {best} answers {garbage[best]:.4g}{known}"
        findings.append(Finding("player", "ok", text))
    return findings


def _against_optimum(batch: EpisodeBatch, optimum: float, spread: float) -> list[Finding]:
    """Compare the mean return with the optimum.

    Args:
        batch: n episodes of the player.
        optimum: the best mean return.
        spread: the difference between the largest and the smallest return of all episodes.
    """
    returns = batch.returns.double()
    error = returns.std(correction=0).item() / len(returns) ** 0.5
    # Of n equal returns the standard error is 0, but others may have a chance of 3 / n ("rule of three").
    slack = (_ERRORS * error if error else 3 * spread / len(returns)) + 1e-4 * max(1.0, abs(optimum))
    mean = returns.mean().item()
    if mean > optimum + slack:
        return [Finding("player", "error", f"the mean return {mean:.4g} is above the optimum {optimum:.4g}")]
    if mean < optimum - slack:
        return [
            Finding("player", "warning", f"the mean return {mean:.4g} is below the optimum {optimum:.4g}")
        ]
    return []


class _Counting:
    """A player that remembers the tokens of its longest turn."""

    def __init__(self, player: Player, tokenizer: Any) -> None:
        self.player, self.tokenizer, self.longest = player, tokenizer, 0

    def __call__(self, words: Sequence[str], rng: np.random.Generator) -> str:
        turn = self.player(words, rng)
        ids = self.tokenizer(turn, add_special_tokens=False)["input_ids"]
        self.longest = max(self.longest, len(ids))
        return turn
