"""What is measured: rewards, ends of episodes, budgets, and the time that partner and rewards take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from textenv.envs.turns import world_generator
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import STOP_REASON, TURNS
from textenv.partners.calls import ReplyCalls, Turn
from textenv.partners.partner import replies_by
from textenv.scoring import reward_wrappers, score_episodes
from textenv.tasks.audit.findings import Finding
from textenv.tasks.audit.subject import Subject

SLOW = 50.0
"""Milliseconds of a reply from which on workers are advised."""


def check_rewards(subject: Subject) -> list[Finding]:
    """The rewards: their range, and whether they tell answers apart."""
    rewarded = bool(reward_wrappers(subject.idle)) or subject.idle.unwrapped.has_partner
    if not rewarded:
        return [Finding("rewards", "warning", "there is neither a reward nor a partner: every return is 0")]
    returns = torch.cat([batch.returns for batch in subject.played.values()])
    low, mean, high = returns.min().item(), returns.mean().item(), returns.max().item()
    subject.figures["return"] = {"min": low, "mean": mean, "max": high}
    by = ", ".join(subject.played)
    if low == high and "player" not in subject.played:
        text = f"every return of bad answers is {low:.4g}; a scripted player would tell more"
        return [Finding("rewards", "ok", text)]
    if low == high:
        return [Finding("rewards", "warning", f"every return is {low:.4g} ({by})")]
    return [Finding("rewards", "ok", f"returns from {low:.4g} to {high:.4g}, mean {mean:.4g} ({by})")]


def check_stops(subject: Subject) -> list[Finding]:
    """Why episodes end; those of the player should not end for lack of budget."""
    shares = {who: _stops(batch) for who, batch in subject.played.items()}
    subject.figures["stop_reasons"] = shares
    cut = {who: batch.truncated.float().mean().item() for who, batch in subject.played.items()}
    subject.figures["share_truncated"] = cut
    who = "player" if "player" in cut else "random"
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares[who].items())
    text = f"{who}: {told}"
    if who == "player" and cut[who] == 1.0:
        return [Finding("stops", "warning", f"{text}; every episode of the player is truncated")]
    return [Finding("stops", "ok", text)]


def check_budget(subject: Subject) -> list[Finding]:
    """Tokens of turns and replies against the budgets."""
    limit, in_all = subject.idle.unwrapped.max_turn_tokens, subject.idle.unwrapped.max_new_tokens
    spec = subject.partner
    findings, texts = [], []
    for who in ("random", "player"):
        if who in subject.played:
            own, foreign = _runs(subject.played[who])
            figures = {"turn_tokens": _percentiles(own), "reply_tokens": _percentiles(foreign)}
            subject.figures.setdefault("tokens", {})[who] = figures
            texts.append(f"{who}: turns of {np.mean(own):.1f} tokens, longest {max(own)} of {limit}")
            room = _stops(subject.played[who]).get("max_length", 0.0)
            if room:
                text = f"{who}: {room:.0%} of the episodes end because max_length has no room for a reply"
                findings.append(Finding("budget", "warning", text))
            if spec is not None and foreign and max(foreign) > spec.cls.max_reply_tokens:
                most = spec.cls.max_reply_tokens
                text = f"{who}: a reply has {max(foreign)} tokens, max_reply_tokens of the partner is {most}"
                findings.append(Finding("budget", "warning", text))
    text = f"{'; '.join(texts)}; {in_all} in an episode"
    return [Finding("budget", "ok", text), *findings]


def check_latency(subject: Subject) -> list[Finding]:
    """How long partner and rewards take for one turn and one episode."""
    replies, scores = _reply_times(subject), _score_times(subject)
    if not replies and not scores:
        return [Finding("latency", "skipped", "there is neither a partner nor a reward")]
    texts, findings = [], []
    for name, times in (("reply", replies), ("reward", scores)):
        if times:
            figures = _percentiles(times)
            subject.figures.setdefault("latency_ms", {})[name] = figures
            texts.append(f"{name} {figures['p50']:.3g} ms, 95 % {figures['p95']:.3g} ms")
    spec = subject.partner
    if replies and spec is not None and not (spec.workers or spec.is_async or spec.batched):
        slow = subject.figures["latency_ms"]["reply"]["p95"]
        if slow > SLOW:
            text = f"a reply takes {slow:.0f} ms and blocks all rows; give the partner workers"
            findings.append(Finding("latency", "warning", text))
    return [Finding("latency", "ok", "; ".join(texts)), *findings]


def _stops(batch: EpisodeBatch) -> dict[str, float]:
    """Reason -> share of the episodes."""
    ends = ["terminated" if ended else "truncated" for ended in batch.terminated.tolist()]
    reasons = Counter(batch.extras.get(STOP_REASON, ends))
    return {str(name): count / len(batch) for name, count in reasons.most_common()}


def _runs(batch: EpisodeBatch) -> tuple[list[int], list[int]]:
    """Lengths of the policy's turns, and of what stands between them."""
    own: list[int] = []
    foreign: list[int] = []
    for row in range(len(batch)):
        start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        mask = batch.action_mask[row, start:end].numpy()
        edges = np.flatnonzero(np.diff(mask)) + 1
        for run in np.split(mask, edges):
            if len(run):
                (own if run[0] else foreign).append(len(run))
    return own or [0], foreign


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    found = np.percentile(np.asarray(values, dtype=np.float64), [50, 95, 99, 100]).tolist()
    return dict(zip(("p50", "p95", "p99", "max"), found, strict=True))


def _reply_times(subject: Subject) -> list[float]:
    """Milliseconds of each reply to the turns of recorded episodes."""
    spec = subject.partner
    who = "player" if "player" in subject.played else "random"
    batch = subject.played[who]
    if spec is None or replies_by(spec.cls) == "reply_ids":
        return []
    times: list[float] = []
    base = subject.idle.unwrapped
    partner = spec.bound(base.tokenizer, chat=base.turn_arguments()["chat"])
    calls = ReplyCalls(spec)
    try:
        for row in range(len(batch)):
            index, episode = int(batch.prompt_index[row]), int(batch.episode_id[row])
            columns = {name: column[index] for name, column in base.prompts.columns.items()}
            rng = world_generator(subject.seed, episode)
            partner.begin(rng, **spec.begin_arguments({**columns, "episode_id": episode}))
            for text in batch.extras[TURNS][row]:
                began = time.perf_counter()
                calls.ask([Turn(0, partner, text, [])])
                outcome = calls.collect("all")[0]
                times.append(1000 * (time.perf_counter() - began))
                if outcome.reply is None or outcome.reply.done:
                    break
    finally:
        calls.close()
        partner.close()
    return times


def _score_times(subject: Subject) -> list[float]:
    """Milliseconds of the rewards of each random episode."""
    times = []
    wrappers = reward_wrappers(subject.idle)
    if not wrappers:
        return []
    for row in range(len(subject.episodes)):
        one = subject.episodes.select([row])
        began = time.perf_counter()
        score_episodes(one, wrappers)
        times.append(1000 * (time.perf_counter() - began))
    return times
