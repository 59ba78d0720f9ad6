"""A folder of links to the required packages alone, as a Python sees them after `pip install textenv`."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(specs: list[str]) -> set[str]:
    """Names of the distributions that these requirements install, with all that they require in turn."""
    found: set[str] = set()
    waiting = [(Requirement(spec), "") for spec in specs]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        key = f"{requirement.name.lower().replace('_', '-')}[{','.join(sorted(requirement.extras))}]"
        if key in found:
            continue
        found.add(key)
        for line in distribution(requirement.name).requires or ():
            waiting += [(Requirement(line), inner) for inner in {"", *requirement.extras}]
    return {key.partition("[")[0] for key in found}


def link_packages(names: set[str], folder: Path) -> None:
    """Link what each distribution has installed into ``folder``."""
    for name in names:
        files = distribution(name).files or ()
        for top in {path.parts[0] for path in files} - {"..", "__pycache__"}:
            link = folder / top
            if not link.is_symlink():
                link.symlink_to(distribution(name).locate_file(top), target_is_directory=True)
