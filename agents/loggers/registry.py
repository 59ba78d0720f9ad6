"""Loggers: outputs for metrics and tables of a run. A protocol, a registry, and the group of a run's loggers.

A run with a folder always writes JSON lines; "rich" (the terminal), "wandb" and "tensorboard" are added by
name.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from textenv.agents.settings.base import Config
from textenv.utils.names import nearest, registrar
from textenv.utils.redaction import masked


@runtime_checkable
class Logger(Protocol):
    """An output for metrics and tables; any object with these three methods is a logger."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take one row of numbers: ``step`` counts iterations online, optimizer steps offline."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Take a table of JSON values, such as samples of generated text; rows are as long as ``columns``."""

    def close(self) -> None:
        """Flush, and release files, processes and the terminal."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Facts about a run for its loggers."""

    name: str = "run"
    """Name of the run."""
    run_dir: Path | None = None
    """Folder of the run; None for a run that leaves no files."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of the run, JSON values."""
    total_steps: int | None = None
    """Steps that the run will have, for a progress bar."""
    resume_step: int | None = None
    """Step after which a resumed run continues; None for a new run."""
    device: str | None = None
    """Device of the run."""


LoggerFactory = Callable[..., Logger]

LOGGERS: dict[str, LoggerFactory | str] = {
    "jsonl": "textenv.agents.loggers.jsonl:jsonl_logger",
    "rich": "textenv.agents.loggers.rich:RichLogger",
    "wandb": "textenv.agents.loggers.trackers:WandbLogger",
    "tensorboard": "textenv.agents.loggers.trackers:TensorBoardLogger",
}
"""Name -> factory(info: RunInfo, **kwargs), or ``"module:attribute"`` to import it when it is first used."""
_PACKAGES = {"tensorboard": "tensorboard"}
"""Logger -> package that an extra of the same name installs."""


def register_logger(name: str) -> Callable[[LoggerFactory], LoggerFactory]:
    """Decorator: make a logger known by ``name``. It is called as ``factory(info, **kwargs)``.

    Raises:
        ValueError: if the name is malformed or taken.
    """
    return registrar("logger", name, LOGGERS)


class Loggers(list[Logger]):
    """The loggers of a run as one logger, and a context manager that closes them.

    Every logger gets every row, in order, whatever the others do; then what they raised is raised. So a
    failing tracker stops the run loudly and its row is in the JSON lines all the same.
    """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Give one row of numbers to every logger.

        Raises:
            TypeError: if a value is not a number.
            Exception: whatever loggers raised, as it was if one did, else as a group.
        """
        row = {name: _number(name, value) for name, value in metrics.items()}
        self._each("log", lambda logger: logger.log(row, step))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Give a table to every logger.

        Raises:
            ValueError: if a row is not as long as ``columns``.
            Exception: whatever loggers raised, as it was if one did, else as a group.
        """
        for i, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"table {name!r}: row {i} must have {len(columns)} values, got {len(row)}")
        self._each("log_table", lambda logger: logger.log_table(name, columns, rows, step))

    def close(self) -> None:
        """Close every logger, even if closing another fails.

        Raises:
            Exception: whatever loggers raised, as it was if one did, else as a group.
        """
        self._each("close", lambda logger: logger.close())

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _each(self, method: str, call: Callable[[Logger], None]) -> None:
        errors: list[Exception] = []
        for logger in self:
            try:
                call(logger)
            except Exception as error:
                error.add_note(f"raised by {type(logger).__name__}.{method}")
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{len(errors)} loggers failed in {method}", errors)


def make_loggers(
    specs: Iterable[str | Sequence[Any] | Logger] = (),
    run_dir: str | os.PathLike[str] | None = None,
    config: Config | Mapping[str, Any] | None = None,
    *,
    total_steps: int | None = None,
    resume_step: int | None = None,
    name: str = "run",
    device: str | None = None,
) -> Loggers:
    """Make the loggers of a run.

    Args:
        specs: names, ``[name, {keyword: value}]`` pairs, or logger objects.
        run_dir: folder of the run. JSON lines are written there whether or not ``specs`` asks for them;
            without a folder the run leaves no files.
        config: settings of the run, for loggers that keep them; secrets are masked.
        total_steps: steps that the run will have, for the progress bar.
        resume_step: step after which a resumed run continues: later rows in the run's files are dropped, for
            they will be written again. None for a fresh run.
        name: name of the run.
        device: where it computes, for loggers that say so.

    Raises:
        ValueError: if a name is unknown; the error lists the known ones.
        TypeError: if a spec is none of the three kinds.
        FileExistsError: if a fresh run's folder holds the metrics of another run.
        ImportError: if a logger's package is not installed; the error names the extra to install.

    Example:
        >>> with make_loggers(["rich"], total_steps=10) as loggers:  # doctest: +SKIP
        ...     loggers.log({"objective/score": 0.5}, step=1)
    """
    if isinstance(specs, str):
        raise TypeError(
            f"loggers must be a list of names or loggers, got the string {specs!r}; say [{specs!r}]"
        )
    settings = masked(config.to_dict() if isinstance(config, Config) else dict(config or {}))
    folder = None if run_dir is None else Path(run_dir)
    info = RunInfo(
        name=name,
        run_dir=folder,
        config=settings,
        total_steps=total_steps,
        resume_step=resume_step,
        device=device,
    )
    loggers = Loggers()
    try:
        if folder is not None:
            loggers.append(_make_logger("jsonl", info))
        for spec in specs:
            if folder is None or spec not in ("jsonl", ["jsonl", {}]):
                loggers.append(_make_logger(spec, info))
    except BaseException:
        loggers.close()
        raise
    return loggers


def check_loggers(
    specs: Iterable[str | Sequence[Any] | Logger], run_dir: str | os.PathLike[str] | None = None
) -> None:
    """Check what ``make_loggers`` will be given, before a run makes or writes anything.

    Raises:
        ValueError: if a name is unknown, or a logger needs a folder and there is none.
        TypeError: if a spec is of none of the three kinds, or has an argument that its logger lacks.
        ImportError: if a logger's package is not installed.
    """
    if isinstance(specs, str) or not isinstance(specs, Iterable):
        what = f"the string {specs!r}; say [{specs!r}]" if isinstance(specs, str) else repr(specs)
        raise TypeError(f"loggers must be a list of names or loggers, got {what}")
    names: set[str] = set()
    for spec in specs:
        if isinstance(spec, Logger):
            continue
        name, kwargs = (spec, {}) if isinstance(spec, str) else _split(spec)
        factory = _factory(name)
        if name in names:
            raise ValueError(f"loggers must differ from each other, got {name!r} twice")
        names.add(name)
        if name in ("jsonl", "tensorboard") and run_dir is None:
            raise ValueError(f"the logger {name!r} needs a run_dir, got None")
        package = _PACKAGES.get(name)
        if package is not None and find_spec(package) is None:
            raise ImportError(f"the logger {name!r} needs {package}: pip install 'textenv[{name}]'")
        try:
            inspect.signature(factory).bind(None, **kwargs)
        except TypeError as error:
            raise TypeError(f"loggers: {name!r} does not take these arguments: {error}") from error


def _factory(name: str) -> LoggerFactory:
    if name not in LOGGERS:
        raise ValueError(f"loggers: unknown logger {name!r}; {nearest(name, LOGGERS)}")
    factory = LOGGERS[name]
    if isinstance(factory, str):
        module, attribute = factory.split(":")
        factory = getattr(import_module(module), attribute)
    return cast(LoggerFactory, factory)


def _make_logger(spec: str | Sequence[Any] | Logger, info: RunInfo) -> Logger:
    if isinstance(spec, Logger):
        return spec
    name, kwargs = (spec, {}) if isinstance(spec, str) else _split(spec)
    return _factory(name)(info, **kwargs)


def _split(spec: Any) -> tuple[str, dict[str, Any]]:
    match spec:
        case [str(name), dict(kwargs)]:
            return name, kwargs
    raise TypeError(
        "a logger must be a name, [name, {keyword: value}] or an object with log, log_table and close, "
        f"got {spec!r}"
    )


def _number(name: str, value: Any) -> float:
    """A Python number for what holds exactly one: int, float, numpy scalar, tensor of one element."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise TypeError(f"metric {name!r} must be a number, got {value!r}")
    return value
