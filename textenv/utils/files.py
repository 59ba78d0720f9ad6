"""Atomic files and folders: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{uuid.uuid4().hex[:8]}")


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; it replaces ``path`` if the block ends without an exception.

    Missing parent folders are made.

    Raises:
        IsADirectoryError: if ``path`` is a folder.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_file(target) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "writing")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # otherwise a crash after the rename can leave an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, marker: str) -> Iterator[Path]:
    """Yield a temporary folder; it replaces ``path`` if the block ends without an exception.

    Missing parent folders are made. An older folder at ``path`` is removed only once the new one is complete.

    Args:
        path: the final folder.
        marker: a file that every such folder contains. A non-empty folder without it is never replaced.

    Raises:
        FileExistsError: if ``path`` is a file, or a folder with other content.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, expected the path of a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise FileExistsError(f"{path} holds other files (there is no {marker} in it) and is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, older = _beside(path, "writing"), _beside(path, "older")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.rename(path, older)
        try:
            os.rename(temporary, path)
        except OSError:
            if older.exists():
                os.rename(older, path)
            raise
        shutil.rmtree(older, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def updated_folder(
    path: str | os.PathLike[str], *, stale: Sequence[str] = (), last: str | None = None
) -> Iterator[Path]:
    """Yield a temporary folder; its content moves to ``path`` if the block ends without an exception.

    Other files in ``path`` stay. After an exception ``path`` is unchanged.

    Args:
        path: the folder; it and missing parent folders are made.
        stale: patterns of names of earlier content in ``path``; it is removed when the new content is
            complete.
        last: the file that is moved last and removed first: a folder without it is incomplete.

    Raises:
        FileExistsError: if ``path`` is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file, expected the path of a folder")
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{uuid.uuid4().hex[:8]}.writing"
    temporary.mkdir()
    whole = False
    try:
        yield temporary
        old = [found for pattern in ([last] if last else []) + list(stale) for found in path.glob(pattern)]
        for found in old:
            _remove(found)
        entries = sorted(temporary.iterdir(), key=lambda entry: entry.name == last)
        for entry in entries:
            target = path / entry.name
            if target.is_dir():
                _remove(target)
            os.replace(entry, target)
        whole = True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and not whole:
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically; missing parent folders are made."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
