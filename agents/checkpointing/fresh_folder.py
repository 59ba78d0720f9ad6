"""A new folder for each run that names none, also where several start in the same second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from textenv.agents.distributed import process_group


@contextmanager
def fresh_folder(name: str, parent: str = "runs") -> Iterator[str]:
    """Make ``parent/NAME-DATE-TIME``; where another run has made it, ``-02``, ``-03``, ... is added.

    Making a folder is atomic, so processes that start at once, as those of a job array, get one each; the
    processes of one run get the same. If the block raises, the folder is removed again unless it holds
    something.

    Args:
        name: prefix of the folder's name, such as the agent's name.
        parent: where it is; made if it is not there.
    """
    process_group.start()
    place = Path(parent)
    before = place.is_dir()
    made = _make(place, name) if process_group.is_main() else None
    try:
        yield str(process_group.broadcast(made))
    except BaseException:
        for folder in [made, *([] if before else [place])]:
            if folder is not None and process_group.is_main():
                with suppress(OSError):  # it holds something
                    folder.rmdir()
        raise


def _make(place: Path, name: str) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        folder = place / (stem if number == 1 else f"{stem}-{number:02d}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError
