"""Checks that episodes come again: with the same seed, another number of rows, and in another order."""

from __future__ import annotations

from textenv.scoring import reward_wrappers, score_episodes
from textenv.tasks.audit.compare import difference
from textenv.tasks.audit.findings import Finding
from textenv.tasks.audit.subject import Subject
from textenv.tasks.audit.token_policies import TokenPolicy


def check_plays(subject: Subject) -> list[Finding]:
    """Random episodes can be played to their end."""
    batch = subject.episodes
    return [Finding("plays", "ok", f"{len(batch)} episodes, {int(batch.response_lengths.sum())} tokens")]


def check_same_seed(subject: Subject) -> list[Finding]:
    """The same seed gives the same episodes in another environment."""
    found = difference(subject.episodes, subject.play("random"))
    return _finding("same-seed", found, "the same seed gives the same episodes")


def check_num_envs(subject: Subject) -> list[Finding]:
    """Another number of rows gives the same episodes."""
    other = subject.num_envs + 3
    found = difference(subject.episodes, subject.play("random", other))
    if not found:
        found = difference(subject.episodes, subject.play("random", 1))
    return _finding("num-envs", found, f"1, {subject.num_envs} and {other} rows give the same episodes")


def check_order(subject: Subject) -> list[Finding]:
    """Episodes do not depend on earlier ones, nor rewards on the other episodes of a batch."""
    base, findings = subject.episodes, []
    first = max(1, subject.count // 2)
    with subject.envs() as envs:
        subject.collect(envs, TokenPolicy(envs.unwrapped, "random"))
        if first < subject.count:
            options = {"episodes": subject.count - first, "first_ticket": first}
            later = subject.collect(envs, TokenPolicy(envs.unwrapped, "random"), **options)
            found = difference(base.select(slice(first, None)), later)
            findings += _finding("order", found, f"episodes {first} and on do not depend on earlier ones")
        wrappers = reward_wrappers(envs)
        if wrappers:
            rows = list(range(len(base)))[::-1]
            alone = [score_episodes(base.select([row]), wrappers) for row in rows]
            found = difference(type(base).concat(alone[::-1]), base)
            findings += _finding("order", found, "rewards do not depend on the other episodes of a batch")
    if not findings:
        findings.append(Finding("order", "skipped", "one episode without rewards has no order"))
    return findings


def _finding(check: str, difference: str, good: str) -> list[Finding]:
    return [Finding(check, "error", difference) if difference else Finding(check, "ok", good)]
