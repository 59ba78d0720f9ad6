"""The command ``textenv check``: audit a task, its partner and its rewards."""

from __future__ import annotations

import json
from typing import Any

from textenv.agents.base.user_code import import_attribute, import_rewards
from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.flags import Flags
from textenv.agents.cli.options import CheckOptions
from textenv.agents.cli.parser import build, make_parser, parse


def check(argv: list[str], flags: Flags) -> int:
    """Print the findings; 1 if one of them is an error."""
    parser = make_parser(
        "textenv check",
        "Check a task with its partner and rewards; the exit code is 1 if there is an error.",
        CheckOptions,
        positional={"task": "name of the task; not needed with --prompts or --env.partner"},
    )
    values = parse(parser, argv)
    task = values.pop("task", None)
    options = build(CheckOptions, values)
    if task is None and options.prompts is None and options.env.partner is None:
        raise UsageError("name the task: textenv check TASK")

    from textenv.rewards.registry import reward_list
    from textenv.tasks.audit import audit

    given: dict[str, Any] = {"prompts": options.prompts, "tokenizer": options.tokenizer}
    if options.reward is not None:
        given["rewards"] = import_rewards(reward_list(options.reward), flags.may_import)
    report = audit(
        task,
        player=None if options.player is None else _player(options.player, flags),
        episodes=options.episodes,
        num_envs=options.num_envs,
        seed=options.seed,
        skip=options.skip,
        split=options.split,
        **{name: value for name, value in given.items() if value is not None},
        **options.env.kwargs(),
    )
    if options.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        import rich

        rich.print(report.table())
        errors, warnings = len(report.of("error")), len(report.of("warning"))
        print(f"errors: {errors}, warnings: {warnings}")
    return 0 if report.ok else 1


def _player(place: str, flags: Flags) -> Any:
    """The function that ``module:function`` or ``file.py:function`` names."""
    if ":" not in place:
        raise UsageError(f"player must be module:function or file.py:function, got {place!r}")
    if not flags.may_import(place):
        raise UsageError(f"player {place!r} is code and named in a file; use --allow_imports if you trust it")
    return import_attribute(place)
