"""Load pretrained files with transformers. Code in a model repository runs only if the user allows it.

With the default ``trust_remote_code=None`` transformers asks on the terminal whether to run such code, and a
"y" on standard input runs it. So this library uses Auto classes only through this module, which always passes
True or False.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from textenv.modeling.saved_runs import model_folder

NOT_HERE = "there is no such folder, and as a hub id it is not in the cache and the hub can't be reached"
"""Reason in errors about a name that may be a folder or a hub id."""
_trusting: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Within the block, all loads may run code from model repositories (``trust_remote_code=True``).

    Blocks may be nested. An inner block with False does not disable an outer one with True.

    Args:
        trust: whether to allow the code; False changes nothing.

    Raises:
        TypeError: if ``trust`` is neither True nor False.

    Example:
        >>> with trusting():
        ...     is_trusted()
        True
        >>> is_trusted()
        False
    """
    token = _trusting.set(is_trusted(trust))
    try:
        yield
    finally:
        _trusting.reset(token)


def is_trusted(given: bool = False) -> bool:
    """Whether code from model repositories may run: allowed for this load, or by ``trusting``.

    Args:
        given: ``trust_remote_code`` of this load.

    Raises:
        TypeError: if ``given`` is neither True nor False.
    """
    if not isinstance(given, bool):
        raise TypeError(f"trust_remote_code must be True or False, got {given!r}")
    return given or _trusting.get()


def load_pretrained(
    auto: Any, source: str | os.PathLike[str], *, what: str, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Call ``auto.from_pretrained(source)``.

    Args:
        auto: an Auto class of transformers.
        source: hub id or folder. In the folder of a run its model is loaded, see ``model_folder``.
        what: what is loaded, such as "model", for errors.
        trust_remote_code: allow code of the model repository; always True within ``trusting``.
        options: further arguments of ``from_pretrained``.

    Raises:
        OSError: if there is no such folder or hub id, or a file is missing.
        ValueError: if the name is empty, files are damaged, or the model needs code that is not allowed.
    """
    trust = is_trusted(trust_remote_code)
    name = os.fspath(source)
    if not name:
        raise ValueError(f"{what} must be a hub id or a folder, got ''")
    if is_path(name) and not os.path.exists(name):
        raise FileNotFoundError(f"{what} {name!r} can't be loaded: there is no such folder")
    if os.path.isdir(name):
        name = os.fspath(model_folder(name))
    try:
        return auto.from_pretrained(name, trust_remote_code=trust, **options)
    except OSError as error:
        reason = NOT_HERE if _unreachable(error) and not os.path.exists(name) else str(error)
        raise OSError(f"{what} {name!r} can't be loaded: {reason}") from error
    except (ImportError, RuntimeError):  # a missing package, or too little memory
        raise
    except Exception as error:
        raise ValueError(f"{what} {name!r} can't be loaded: {_reason(error)}") from error


def is_path(name: str) -> bool:
    """Whether a name can only be a path: a hub id has the form NAME or OWNER/NAME.

    >>> [is_path(name) for name in ("./x", "/x", "~/x", "a/b/c", "a/", "gpt2", "org/name")]
    [True, True, True, True, True, False, False]
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or "\\" in name


def _unreachable(error: BaseException) -> bool:
    """Whether the hub could not be reached, or offline mode is on."""
    names = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError")
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(type(each).__name__ in names for each in seen)


def make_pretrained(auto: Any, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Call ``auto.from_config``: a model with random weights and a copy of the config.

    It is a copy because policies disable dropout in the config of their model.

    Args:
        auto: an Auto class of transformers.
        config: a transformers config; it is not changed.
        trust_remote_code: allow code of the model repository; always True within ``trusting``.
        options: further arguments of ``from_config``.

    Raises:
        ValueError: if the config needs code that is not allowed.
    """
    trust = is_trusted(trust_remote_code)
    try:
        return auto.from_config(copy.deepcopy(config), trust_remote_code=trust, **options)
    except ValueError as error:
        if not _wants_code(error):
            raise
        raise ValueError(f"can't make a model from {type(config).__name__}: {_reason(error)}") from error


def _wants_code(error: Exception) -> bool:
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def _reason(error: Exception) -> str:
    if _wants_code(error):
        return (
            "it needs code from the model repository, which is not run by default; read the code, then allow "
            "it with --trust_remote_code on the command line or trust_remote_code=True in Python"
        )
    if type(error).__name__ == "SafetensorError":
        return f"{error}; the model's .safetensors file is damaged"
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
