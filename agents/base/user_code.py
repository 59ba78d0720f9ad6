"""Import the user's code, named as ``module:name`` or ``file.py:name``, only where the user allowed it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from textenv.utils.names import nearest


def import_module_or_file(name: str) -> ModuleType:
    """Import a module, which may lie in the working folder, or a ``.py`` file.

    Raises:
        ImportError: if it is not there, has a mistake of syntax, or ends the program; other errors in the
            user's code pass through.
    """
    path = Path(name)
    if path.suffix != ".py":
        with _found_from(Path.cwd()), _explained(name):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                    raise ImportError(
                        f"there is no module {name!r}, neither installed nor in {Path.cwd()}"
                    ) from error
                raise
    if not path.is_file():
        raise ImportError(f"{name}: no such file")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Under its own name, unless that would hide a module that is there already.
    sys.modules.setdefault(path.stem, module)
    try:
        with _found_from(path.resolve().parent), _explained(name):
            spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]  # half of it is no module
        raise
    return module


def import_attribute(place: str) -> Any:
    """What ``module:name`` or ``file.py:name`` names.

    Raises:
        ImportError: if there is no such module, file or attribute.
    """
    name, _, attribute = place.rpartition(":")
    module = import_module_or_file(name)
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise ImportError(f"{name} has no {attribute!r}; {nearest(attribute, known)}")
    return getattr(module, attribute)


def import_rewards(spec: Any, allowed: Callable[[str], bool]) -> Any:
    """Import and register the ``module:function`` names in a reward spec, nested ones included.

    Args:
        spec: a spec or a list of specs, as YAML gives it.
        allowed: whether the user allowed the import of this name.

    Returns:
        The spec with registered names instead.

    Raises:
        ValueError: if a name is not allowed.
        ImportError: if it can't be imported.
        TypeError: if it is no function or reward class.
    """
    if isinstance(spec, list | tuple):
        return [import_rewards(part, allowed) for part in spec]
    if isinstance(spec, Mapping):
        return {key: import_rewards(value, allowed) for key, value in spec.items()}
    if not isinstance(spec, str) or not _is_place(spec):
        return spec
    if not allowed(spec):
        raise ValueError(
            f"reward {spec!r} names code to import and comes from a file; use --allow_imports if you trust "
            "the file, or give the reward on the command line"
        )
    from textenv.rewards.registry import REWARDS, register_reward

    target = import_attribute(spec)
    if not callable(target):
        raise TypeError(f"reward {spec!r} must be a function or a reward class, got {type(target).__name__}")
    for name, known in REWARDS.items():
        if known is target:
            return name
    name = str(getattr(target, "__name__", type(target).__name__))
    register_reward(name)(target)
    return name


def _is_place(text: str) -> bool:
    """Whether a string has the form ``package.module:name`` or ``path/file.py:name``.

    >>> [_is_place(text) for text in ("my:fn", "a/b.py:fn", "a.b:fn", "length", "a: b", "http://x")]
    [True, True, True, False, False, False]
    """
    module, colon, name = text.rpartition(":")
    dotted = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and name.isidentifier() and (module.endswith(".py") or dotted)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Add the user's file to errors that do not name it; other errors in it pass through."""
    try:
        yield
    except SyntaxError as error:
        place = f"{error.filename or name}, line {error.lineno}"
        raise ImportError(f"{name} can't be imported, {place}: {error.msg}") from error
    except SystemExit as error:
        raise ImportError(
            f"{name} can't be imported, it ends the program (sys.exit({error.code!r}))"
        ) from error


@contextmanager
def _found_from(folder: Path) -> Iterator[None]:
    """Within the block, modules beside the user's code are found first, as Python does for a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
