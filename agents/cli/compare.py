"""The command ``textenv compare``: read the study, run what is missing, print tables and conclusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import yaml

from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.flags import Flags
from textenv.agents.cli.interrupts import advising
from textenv.agents.cli.parser import build, config_files, make_parser, parse
from textenv.agents.reports.plots import PlotFormat
from textenv.agents.study.config import StudyConfig
from textenv.utils.names import nearest
from textenv.utils.terminal import text_table

PRINT = ("--print_config", "--print-config")
LABELLED = ("agents", "tasks")
"""Options whose names continue with a label."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions(StudyConfig):
    """Options of `textenv compare`."""

    run_dir: str | None = None
    """The study's folder; None is runs/NAME with the file's name. Finished runs are kept."""
    jobs: int = 1
    """Runs in parallel, each in its own process."""
    overwrite: bool = False
    """Repeat runs that were made with other settings."""
    plot_format: PlotFormat = "png"
    """Also write the plots as pdf or svg files."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(jobs=">= 1")


def compare(argv: Sequence[str], flags: Flags) -> int:
    """Run the study of a file and print its results. The exit code is 1 if a run failed."""
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    parser = make_parser(
        "textenv compare STUDY.yaml", "Compare agents: run a study and report on it.", StudyOptions
    )
    show = [token for token in argv if token in PRINT]
    if show and len(argv) > 1:
        argv = [token for token in argv if token not in PRINT]
    argv, changes = split_changes(argv)
    if not show and not any(token.partition("=")[0] in ("--config", "--help", "-h") for token in argv):
        raise UsageError(
            "name the study's file: textenv compare STUDY.yaml; it holds agents and tasks by label, as in "
            "agents: {ppo: {}, sft: {}} and tasks: {random-walks: {}}"
        )
    values = parse(parser, argv)
    for (group, name), value in changes:
        change(values, group, name, value)
    if show:
        print(yaml.safe_dump(values, sort_keys=False), end="")
        return 0
    options = build(StudyOptions, values)
    config = StudyConfig(**{spec.name: getattr(options, spec.name) for spec in fields(StudyConfig)})
    folder = RunFolder(f"runs/{_name(argv)}" if options.run_dir is None else options.run_dir).path

    from textenv.agents.distributed.devices import default_device, describe
    from textenv.agents.study.outputs import write_outputs
    from textenv.agents.study.runner import quiet, run_study

    quiet()
    used = {task.policy.device or describe(default_device()) for task in config.tasks.values()}
    print(f"device: {', '.join(sorted(used))}", flush=True)
    with advising("the same command continues the study"):
        results = run_study(
            config,
            folder,
            jobs=options.jobs,
            overwrite=options.overwrite,
            imports=flags.imports,
            may_import=flags.may_import,
            trust_remote_code=flags.trust_remote_code,
            log=lambda line: print(line, flush=True),
        )
    found = write_outputs(config, folder, plot_format=options.plot_format)

    import rich

    for title, (columns, cells) in (("scores", found.table), ("costs of a run", found.costs)):
        rich.print(text_table(columns, cells, title=title))
    for line in found.verdict:
        print(line)
    print(f"report: {found.report}")
    return int(any(result["status"] == "failed" for result in results))


def split_changes(argv: Sequence[str]) -> tuple[list[str], list[tuple[tuple[str, str], Any]]]:
    """Take options such as ``--agents.ppo.settings.epochs 2`` out of a command line.

    Returns:
        The rest, and ((group, rest of the name), value) for each.

    >>> split_changes(["--jobs", "2", "--agents.ppo.settings.learning_rate=1e-4"])
    (['--jobs', '2'], [(('agents', 'ppo.settings.learning_rate'), 0.0001)])
    """
    rest, changes, tokens = [], [], list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        group, dot, inner = name.partition(".")
        if not token.startswith("--") or group not in LABELLED or not dot:
            rest.append(token)
            continue
        if not equals:
            value = tokens.pop(0) if tokens and not tokens[0].startswith("--") else "true"
        changes.append(((group, inner), _value(value)))
    return rest, changes


def change(values: dict[str, Any], group: str, name: str, value: Any) -> None:
    """Set a value deep in the settings of a label, such as ``ppo.settings.epochs`` in ``agents``.

    Raises:
        UsageError: if the group has no such label.
    """
    settings = values[group] or {}
    label = next(
        (known for known in sorted(settings, key=len, reverse=True) if name.startswith(f"{known}.")), None
    )
    if label is None:
        raise UsageError(f"--{group}.{name}: no such label; {nearest(name, settings)}")
    place = settings[label] = dict(settings[label] or {})
    *inner, last = name.removeprefix(f"{label}.").replace("-", "_").split(".")
    for key in inner:
        found = place.get(key)
        place[key] = dict(found) if isinstance(found, Mapping) else {}
        place = place[key]
    place[last] = value


def _value(text: str) -> Any:
    """A value as YAML reads it, and 1e-4 as a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} is not a valid value: {' '.join(str(error).split())}") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _name(argv: Sequence[str]) -> str:
    """Default name of a study's folder: its file's name."""
    files = list(config_files(argv))
    if not files:
        raise UsageError("name the study's file or its folder: textenv compare STUDY.yaml --run_dir FOLDER")
    return files[0].stem
