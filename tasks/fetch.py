"""Fetch the texts and ratings that the tasks use: ``python -m textenv.tasks.fetch``.

They come as a source package that pip downloads by hash from whatever index pip is set up for; it is unpacked
into the user's cache and not installed. Texts: Hutto and Gilbert, "VADER" (ICWSM 2014), MIT licence.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from textenv.atomic import atomic_folder
from textenv.tasks.storage import cache_folder

PACKAGE = "vadersentiment"
VERSION = "0.5"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
"""Of the package's archive, as in data-requirements.txt."""
STEMS = ("movieReviewSnippets", "amazonReviewSnippets", "tweets", "nytEditorialSnippets")
MARKER = "SOURCE.json"

_REQUIREMENTS = Path(__file__).with_name("data-requirements.txt")
_ROOT = f"vaderSentiment-{VERSION}"
_INNER = f"{_ROOT}/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBERS = (
    "_README_.txt",
    *(f"{stem}_{kind}.txt" for stem in STEMS for kind in ("GroundTruth", "anonDataRatings")),
)


def snippets_folder() -> Path:
    """Where the fetched files are, or would be."""
    return cache_folder() / f"{PACKAGE}-{VERSION}"


def is_fetched() -> bool:
    """Whether the files are there and complete."""
    try:
        return json.loads((snippets_folder() / MARKER).read_text())["sha256"] == SHA256
    except (OSError, ValueError, KeyError):
        return False


def fetch_snippets(*, archive: str | Path | None = None, force: bool = False) -> Path:
    """Make sure that the files are in the cache; they appear there all at once.

    Args:
        archive: the package's archive, if it was downloaded by other means; its hash is checked all the same.
        force: fetch again even if they are there.

    Returns:
        The folder.

    Raises:
        RuntimeError: if pip is missing or can't download the package.
        ValueError: if the archive is not the expected one.
    """
    folder = snippets_folder()
    if is_fetched() and not force:
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        content = (Path(archive) if archive is not None else _download(Path(temporary))).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"the archive of {PACKAGE} {VERSION} must have sha256 {SHA256}, got {found}")
    with atomic_folder(folder, marker=MARKER) as building:
        _unpack(content, building)
        source = {"package": PACKAGE, "version": VERSION, "sha256": SHA256}
        (building / MARKER).write_text(json.dumps(source, indent=2) + "\n")
    return folder


def _download(folder: Path) -> Path:
    """Let pip download the archive into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", PACKAGE, "--require-hashes"]
    command += ["--requirement", str(_REQUIREMENTS), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(folder.glob("*.zip"))
    if done.returncode or not archives:
        said = (done.stderr or done.stdout).strip() or "nothing was downloaded"
        raise RuntimeError(
            f"pip could not download {PACKAGE}=={VERSION}:\n{said}\n"
            f"If this machine has no package index, fetch the archive elsewhere and pass --archive FILE."
        )
    return archives[0]


def _unpack(content: bytes, folder: Path) -> None:
    """Write the licence and the wanted files; nothing else of the archive touches the disk."""
    with zipfile.ZipFile(io.BytesIO(content)) as outer:
        (folder / "LICENSE.txt").write_bytes(outer.read(f"{_ROOT}/LICENSE.txt"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(_INNER))) as inner:
            for name in _MEMBERS:
                member = inner.extractfile(f"hutto_ICWSM_2014/{name}")
                if member is None:
                    raise ValueError(f"{name} in the archive of {PACKAGE} must be a file")
                (folder / name).write_bytes(member.read())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m textenv.tasks.fetch", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--archive", metavar="FILE", help=f"the archive of {PACKAGE} {VERSION}, already downloaded"
    )
    parser.add_argument("--force", action="store_true", help="fetch again even if the files are in the cache")
    options = parser.parse_args(arguments)
    there = is_fetched() and not options.force
    try:
        folder = fetch_snippets(archive=options.archive, force=options.force)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"texts and ratings {'are already' if there else 'are now'} in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
