"""Packages of the optional extras: imported on use, with an error that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_extra(module: str, *, extra: str, what: str) -> Any:
    """Import a module of a package that only some installations have.

    Args:
        module: name of the module, such as "scipy.stats".
        extra: the extra of this library that installs the package.
        what: what needs it, as the start of the error.

    Raises:
        ImportError: if the package is not installed; an error inside of an installed package is raised as it
            is.

    >>> import_extra("no_such_package.parts", extra="study", what="a study")
    Traceback (most recent call last):
    ModuleNotFoundError: a study needs no_such_package: pip install 'textenv[study]'
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{what} needs {package}: pip install 'textenv[{extra}]'", name=package
        ) from error
