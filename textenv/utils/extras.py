"""Import optional packages on use; the error for a missing one names the extra to install."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_extra(module: str, *, extra: str, what: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: name of the module, such as "scipy.stats".
        extra: extra of this library that installs the package.
        what: the feature that needs the package, for the error.

    Raises:
        ModuleNotFoundError: if the package is not installed. Other errors of the import are not changed.

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
