"""Loading what transformers saved. Code that comes with the files runs only where the user said so.

transformers' own default, None, asks on the terminal whether to run such code, and a "y" on standard input
runs it. So everything that this library loads by an Auto class goes through this module, which always says
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
"""What is wrong with a name that may be that of a folder or of the hub."""
_trusting: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Within the block, code that comes with what is loaded by name may run, whoever loads it.

    Blocks may be nested: an inner one with False takes nothing back.

    Args:
        trust: False changes nothing.

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
    """Whether code that comes with files may run: it was ``given`` for this load, or for all of a block.

    Raises:
        TypeError: if ``given`` is neither True nor False.
    """
    if not isinstance(given, bool):
        raise TypeError(f"trust_remote_code must be True or False, got {given!r}")
    return given or _trusting.get()


def load_pretrained(
    auto: Any, source: str | os.PathLike[str], *, what: str, trust_remote_code: bool = False, **options: Any
) -> Any:
    """``auto.from_pretrained(source)``.

    Args:
        auto: an Auto class of transformers.
        source: hub id or folder; that of a run stands for its model, see ``model_folder``.
        what: what is loaded, for errors, such as "model".
        trust_remote_code: whether code that comes with the files may run; True within ``trusting``.
        options: further arguments of ``from_pretrained``.

    Raises:
        OSError: if there is nothing of that name, or a file is missing.
        ValueError: if the files are damaged, or are to be run and may not be.
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
    except (ImportError, RuntimeError):  # a package that is missing, memory that is short
        raise
    except Exception as error:
        raise ValueError(f"{what} {name!r} can't be loaded: {_reason(error)}") from error


def is_path(name: str) -> bool:
    """Whether a name can only be that of a folder or file: a hub id is NAME or OWNER/NAME.

    >>> [is_path(name) for name in ("./x", "/x", "~/x", "a/b/c", "a/", "gpt2", "org/name")]
    [True, True, True, True, True, False, False]
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or "\\" in name


def _unreachable(error: BaseException) -> bool:
    """Whether the hub could not be asked, or may not be."""
    names = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError")
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(type(each).__name__ in names for each in seen)


def make_pretrained(auto: Any, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """``auto.from_config(config)``: a model with random weights and a copy of the config.

    Policies switch dropout off in their model's config, and the user's own object must stay as it was.

    Args:
        auto: an Auto class of transformers.
        config: a transformers config.
        trust_remote_code: whether code that comes with the config may run; True within ``trusting``.
        options: further arguments of ``from_config``.

    Raises:
        ValueError: if the config comes with code that may not be run.
    """
    trust = is_trusted(trust_remote_code)
    try:
        return auto.from_config(copy.deepcopy(config), trust_remote_code=trust, **options)
    except ValueError as error:
        if not _wants_code(error):
            raise
        raise ValueError(f"{type(config).__name__} can't be made a model: {_reason(error)}") from error


def _wants_code(error: Exception) -> bool:
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def _reason(error: Exception) -> str:
    if _wants_code(error):
        return (
            "it comes with code of its own, which is not run unless you say so after reading it: "
            "--trust_remote_code on the command line, trust_remote_code=True in Python"
        )
    if type(error).__name__ == "SafetensorError":
        return f"{error}; the model's .safetensors file is damaged"
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
