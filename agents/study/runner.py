"""Run the missing runs of a study, in this process or in several; finished runs are kept."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from textenv.agents.base.user_code import import_module_or_file, import_rewards
from textenv.agents.checkpointing.needs import check_writable
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.study.checks import check_cells
from textenv.agents.study.config import StudyConfig
from textenv.agents.study.plan import (
    IDENTITY,
    RESULT,
    RunSpec,
    differences,
    identity,
    plan,
    without_idle,
)
from textenv.agents.study.run import Study, perform
from textenv.modeling.pretrained import trusting
from textenv.utils.deprecation import warn_renamed
from textenv.utils.extras import import_extra
from textenv.utils.json_files import read_object, write_json
from textenv.utils.redaction import masked

STUDY = "study.json"
"""The study's settings, in its folder."""


class StudyError(RuntimeError):
    """A study can't continue in its folder."""


def run_study(
    config: StudyConfig,
    folder: str | os.PathLike[str],
    *,
    jobs: int = 1,
    overwrite: bool = False,
    imports: Sequence[str] = (),
    may_import: Callable[[str], bool] = lambda place: False,
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda line: None,
    tell: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run the missing runs of a study; failed runs are repeated.

    Args:
        config: settings.
        folder: the study's folder.
        jobs: runs in parallel, each in its own process; 1 uses this process.
        overwrite: delete and repeat runs that were made with other settings.
        imports: modules and files that other processes import first, for custom agents and tasks.
        may_import: whether a reward that is named as ``module:function`` may be imported.
        trust_remote_code: run code that comes with a model.
        log: called with one line after every run.
        tell: deprecated name of ``log``.

    Returns:
        The results of all runs, in the order of ``plan``: see ``perform``.

    Raises:
        StudyError: if the folder is in use, or holds runs made from other settings.
        ValueError: if a reward may not be imported, ``jobs`` is below 1, or a cell of the study can't run:
            every cell is checked before the first run, and the error names the one.
        ImportError: without scipy and tabulate, which its tables need.
    """
    if tell is not None:
        warn_renamed("tell", "log")
        log = tell
    for module in ("scipy.stats", "tabulate"):
        import_extra(module, extra="study", what="a comparison study")
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    for task in config.tasks.values():
        import_rewards([task.reward, task.judge], may_import)
    study = Study(config=config, folder=RunFolder(folder).path, trust_remote_code=trust_remote_code)
    specs = list(plan(config))
    check_writable(study.folder)
    with trusting(trust_remote_code):
        check_cells(config, [spec for spec in specs if not _is_done(study, spec)])
    with trusting(trust_remote_code), _locked(study.folder):
        _check_same(study, specs, overwrite=overwrite)
        write_json(study.folder / STUDY, masked(config.to_dict()))
        missing = [spec for spec in specs if not _is_done(study, spec)]
        failed = sum(spec.result(study.folder) is not None for spec in missing)
        if len(missing) < len(specs):
            log(f"{len(specs) - len(missing)} of {len(specs)} runs are done already and kept")
        if failed:
            log(f"{failed} of {len(specs)} runs failed before and are run again")
        runs = _one_by_one(study, missing) if jobs == 1 else _side_by_side(study, missing, jobs, imports)
        for count, (spec, result) in enumerate(runs, start=len(specs) - len(missing) + 1):
            log(f"[{count}/{len(specs)}] {spec.name}: {_outcome(result)}")
    found = [spec.result(study.folder) for spec in specs]
    return [result for result in found if result is not None]


def _one_by_one(study: Study, specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, dict[str, Any]]]:
    for spec in specs:
        yield spec, perform(study, spec)


def _side_by_side(
    study: Study, specs: Sequence[RunSpec], jobs: int, imports: Sequence[str]
) -> Iterator[tuple[RunSpec, dict[str, Any]]]:
    """Run in separate processes, so that a crash affects only one run."""
    context = multiprocessing.get_context("spawn")
    waiting = list(specs)
    running: dict[Any, tuple[Any, RunSpec]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                spec = waiting.pop(0)
                (spec.folder(study.folder) / RESULT).unlink(missing_ok=True)  # of an earlier attempt
                # The object, not its values: which of them were given is a part of it.
                arguments = (study.config, str(study.folder), study.trust_remote_code, spec.to_dict())
                process = context.Process(target=_child, args=(*arguments, list(imports)))
                process.start()
                running[process.sentinel] = process, spec
            for sentinel in wait(list(running)):
                process, spec = running.pop(sentinel)
                process.join()
                result = spec.result(study.folder)
                if result is None:
                    error = f"the run's process ended with exit code {process.exitcode}"
                    result = {**spec.to_dict(), "status": "failed", "error": error, "traceback": ""}
                    write_json(spec.folder(study.folder) / RESULT, result)
                yield spec, result
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _child(
    config: StudyConfig, folder: str, trust_remote_code: bool, spec: dict[str, Any], imports: list[str]
) -> None:
    """Body of a run's process; it ends with the process that started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    for name in imports:
        import_module_or_file(name)
    quiet()
    study = Study(config=config, folder=Path(folder), trust_remote_code=trust_remote_code)
    with trusting(trust_remote_code):
        perform(study, RunSpec(**spec))


def quiet() -> None:
    """Turn off the progress bars and warnings of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _is_done(study: Study, spec: RunSpec) -> bool:
    result = spec.result(study.folder)
    return result is not None and result["status"] == "done"


def _outcome(result: dict[str, Any]) -> str:
    if result["status"] == "failed":
        return f"failed, {result['error']}"
    found = result["figures"]
    shown = [f"{name} {found[name]:.4g}" for name in ("reward", "judge", "kl") if name in found]
    return ", ".join([*shown, f"{found['seconds']:.1f} s"])


def _check_same(study: Study, specs: Sequence[RunSpec], *, overwrite: bool) -> None:
    """Refuse runs in the folder that were made from other settings, or drop them."""
    for spec in specs:
        folder = spec.folder(study.folder)
        path = folder / IDENTITY
        if not path.exists():
            continue
        found = masked(read_object(path))
        changed = differences(without_idle(found), without_idle(identity(study.config, spec)))
        if not changed:
            continue
        if not overwrite:
            raise StudyError(
                f"{folder} was made from other settings ({'; '.join(changed)}); use overwrite=True to repeat "
                "such runs, give the agent another label, or choose another folder"
            )
        shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the study's folder for this process."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise StudyError(f"{folder} is in use: another process is running this study") from None
