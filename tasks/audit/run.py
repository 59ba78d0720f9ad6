"""``audit``: run all checks on one environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textenv.tasks.audit.answers import check_player
from textenv.tasks.audit.findings import AuditReport, Finding
from textenv.tasks.audit.garbage import check_garbage
from textenv.tasks.audit.groups import check_groups
from textenv.tasks.audit.isolation import check_global_random, check_sockets
from textenv.tasks.audit.measures import check_budget, check_latency, check_rewards, check_stops
from textenv.tasks.audit.repeats import check_num_envs, check_order, check_plays, check_same_seed
from textenv.tasks.audit.subject import Subject
from textenv.tasks.players import Player
from textenv.tasks.task import Task
from textenv.utils.checks import check_at_least, check_choice, check_seed

CHECKS: Mapping[str, Callable[[Subject], list[Finding]]] = {
    "plays": check_plays,
    "same-seed": check_same_seed,
    "num-envs": check_num_envs,
    "order": check_order,
    "global-random": check_global_random,
    "sockets": check_sockets,
    "groups": check_groups,
    "garbage": check_garbage,
    "player": check_player,
    "rewards": check_rewards,
    "stops": check_stops,
    "budget": check_budget,
    "latency": check_latency,
}
"""Name -> check, in the order in which they run. The last four use the episodes of the others."""


def audit(
    task: str | Task | None = None,
    *,
    player: Player | None = None,
    episodes: int = 16,
    num_envs: int = 4,
    seed: int = 0,
    skip: Sequence[str] = (),
    **env_kwargs: Any,
) -> AuditReport:
    """Check a task with its partner and rewards: what training, groups and resumed runs rely on.

    No model is needed: tokens are chosen by rules (random, empty, endless, repeated, special tokens) and by
    a scripted player, if there is one.

    Args:
        task: a task's name; None for a partner or prompts of your own.
        player: a scripted player that does the task well, ``player(words, rng) -> turn``; by default the
            task's (``TaskData.make_player``).
        episodes: episodes of each check.
        num_envs: rows.
        seed: of the stream of episodes.
        skip: names of ``CHECKS`` to leave out.
        env_kwargs: further arguments of ``textenv.tasks.make_vec_env``: ``task_kwargs``, ``partner``,
            ``rewards``, ``prompts``, ``tokenizer``, budgets.

    Returns:
        The findings. An exception in a check is an error of that check.

    Raises:
        TypeError: if an argument of the environment is unknown.
        ValueError: if an argument is out of range, or the environment cannot be made.

    Example:
        >>> report = audit("probe-copy", episodes=4)
        >>> report.ok, report.findings[0].text
        (True, '4 episodes, 4 tokens')
    """
    check_at_least("episodes", episodes, 1)
    check_at_least("num_envs", num_envs, 1)
    for name in skip:
        check_choice("skip", name, tuple(CHECKS))
    arguments = {"task": task, **env_kwargs}
    subject = Subject(
        arguments, episodes=episodes, num_envs=num_envs, seed=check_seed("seed", seed), player=player
    )
    findings: list[Finding] = []
    try:
        name = _name(task, subject.partner, subject.idle.unwrapped.source)
        for check, function in CHECKS.items():
            if check in skip:
                findings.append(Finding(check, "skipped", "left out by skip"))
            elif check != "plays" and _broken(findings):
                findings.append(Finding(check, "skipped", "random episodes cannot be played"))
            else:
                findings += _run(check, function, subject)
    finally:
        subject.close()
    return AuditReport(name, findings, subject.figures)


def _run(check: str, function: Callable[[Subject], list[Finding]], subject: Subject) -> list[Finding]:
    try:
        if check != "plays":
            _ = subject.episodes
        return function(subject)
    except Exception as error:
        return [Finding(check, "error", f"{type(error).__name__}: {error}")]


def _broken(findings: Sequence[Finding]) -> bool:
    return any(finding.check == "plays" and finding.severity == "error" for finding in findings)


def _name(task: str | Task | None, partner: Any, source: Any) -> str:
    if task is not None:
        return task.name if isinstance(task, Task) else task
    if partner is not None:
        return f"partner {partner.cls.__name__}"
    return "prompts" if source is None or source.data is None else "random-walks"
