"""The registry: rewards by name, and specs ``["name", {arguments}]`` in JSON values that rebuild them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from textenv.rewards.catalog import BUILTIN, MODULES
from textenv.rewards.functions import FunctionOptions, FunctionReward
from textenv.rewards.term import RewardTerm
from textenv.utils import specs
from textenv.utils.names import nearest, shown

T = TypeVar("T", bound=Callable[..., Any])

REWARDS: dict[str, Callable[..., Any]] = {}
"""Name -> a `RewardTerm` class, or a plain function of texts."""
OPTIONS: dict[str, dict[str, Any]] = {}
"""Name -> the options ``messages`` and ``special_tokens`` that it was registered with."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OF_TASK = "task"
"""Name of the task's own rewards in an environment's list; no reward can have this name."""
OBJECT_PREFIX = "object:"
"""Prefix, in an environment's spec, of a reward that was given as a Python object and has no spec."""


def register_reward(
    name: str, *, override: bool = False, messages: bool | None = None, special_tokens: bool = False
) -> Callable[[T], T]:
    """Register a `RewardTerm` class or a plain function under ``name``: a decorator.

    Args:
        name: letters, digits and ``. _ -``.
        override: replace another reward of that name. Registering the same class or function again is always
            allowed, so that a notebook cell can be run twice.
        messages: format of a function's ``prompts`` and ``completions``: True for lists of messages (a text
            is one user message), False for texts, None for messages if the prompts were given as messages,
            else texts.
        special_tokens: texts keep their special tokens (EOS, the marks of a chat template). A class has an
            attribute of that name.

    Raises:
        ValueError: if the name is malformed or belongs to another reward.
        TypeError: if the decorated object is neither a `RewardTerm` class nor a function, or an option is not
            a bool or is given for a class.

    Example:
        >>> @register_reward("shout")
        ... def shout(completions, **columns):
        ...     return [float(text.isupper()) for text in completions]
        >>> make_reward("shout").name
        'shout'
        >>> del REWARDS["shout"]
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"a reward's name must consist of letters, digits and '._-', got {name!r}")
    if name == OF_TASK:
        raise ValueError(f"a reward can't have the name {OF_TASK!r}, which stands for the task's own rewards")
    for option, value in (("messages", messages), ("special_tokens", special_tokens)):
        if not (isinstance(value, bool) or (option == "messages" and value is None)):
            raise TypeError(f"reward {name!r}: {option} must be true or false, got {value!r}")

    def register(target: T) -> T:
        if inspect.isclass(target):
            if not issubclass(target, RewardTerm):
                raise TypeError(f"reward {name!r} must be a RewardTerm subclass, got class {target.__name__}")
            if messages is not None or special_tokens:
                raise TypeError(
                    f"reward {name!r}: messages and special_tokens are for functions; a class sets its "
                    "attribute special_tokens and gets messages from textenv.episodes.conversations"
                )
        elif not callable(target):
            raise TypeError(f"reward {name!r} must be a RewardTerm subclass or a function, got {target!r}")
        if not target.__module__.startswith("textenv.rewards."):
            _load_builtins()
        present = REWARDS.get(name)
        if present is not None and not override and _origin(present) != _origin(target):
            raise ValueError(
                f"reward {name!r} is already registered as {_origin(present)}; "
                "choose another name or pass override=True"
            )
        REWARDS[name] = target
        OPTIONS[name] = {"messages": messages, "special_tokens": special_tokens}
        if inspect.isclass(target):
            target.name = name  # type: ignore[attr-defined]
        return target

    return register


def reward_names() -> list[str]:
    """Every registered name, sorted."""
    _load_builtins()
    return sorted(REWARDS)


def describe() -> dict[str, str]:
    """Registered name -> one line: that of the catalog, or the first line of its docstring."""
    return {
        name: BUILTIN[name]
        if name in BUILTIN and REWARDS[name].__module__.startswith("textenv.rewards.")
        else (inspect.getdoc(REWARDS[name]) or "").split("\n")[0]
        for name in reward_names()
    }


def make_reward(spec: Any, *, allow_imports: bool = False) -> RewardTerm:
    """Build a reward term.

    Args:
        spec: a name, ``[name, {arguments}]``, ``{"name": name, **arguments}``, a `RewardTerm` (returned as it
            is), or a plain function ``fn(prompts, completions, **columns) -> list[float | None]``.
        allow_imports: also accept ``"module:function"`` as a name and import it. Do not use it for specs that
            you do not trust.

    Raises:
        ValueError: if the spec is malformed, the name unknown, or an argument does not fit.
    """
    if isinstance(spec, RewardTerm):
        return spec
    if callable(spec) and not inspect.isclass(spec):
        return _from_target(spec, None, {})
    if inspect.isclass(spec) and issubclass(spec, RewardTerm):
        return _from_target(spec, spec.name, {})
    name, arguments = split_spec(spec)
    target = _find(name, allow_imports)
    try:
        return _from_target(target, None if ":" in name else name, arguments, allow_imports)
    except (TypeError, ValueError) as error:
        if not getattr(error, "__notes__", None):
            error.add_note(f"in the reward {shown(spec)}")
        raise


def split_spec(spec: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a spec.

    >>> split_spec("length"), split_spec(("length", {"n": 5})), split_spec({"name": "length", "n": 5})
    (('length', {}), ('length', {'n': 5}), ('length', {'n': 5}))

    Raises:
        ValueError: if the spec has none of the three forms.
    """
    found = specs.split_spec(spec)
    if found is not None:
        return found
    raise ValueError(
        f'a reward spec must be "name", ["name", {{arguments}}] or {{"name": ..., arguments}}, got {spec!r}'
    )


def reward_list(specs: Any) -> list[Any]:
    """One spec, or a list of them, as a list.

    A list of a name and a mapping is one spec, ``["name", {arguments}]``, unless the mapping is itself a
    spec: ``["length", {"name": "regex", "pattern": "a"}]`` are two.

    Raises:
        ValueError: if it is neither a spec nor a list.

    Example:
        >>> reward_list("length"), reward_list(["regex", {"pattern": "a"}]), reward_list(["length", "kl"])
        (['length'], [['regex', {'pattern': 'a'}]], ['length', 'kl'])
    """
    if isinstance(specs, list | tuple):
        return [specs] if is_pair(specs) else list(specs)
    named = isinstance(specs, Mapping) and isinstance(specs.get("name"), str)
    if named or isinstance(specs, str | RewardTerm) or callable(specs):
        return [specs]
    raise ValueError(f"rewards must be a reward spec or a list of them, got {shown(specs)}")


def is_pair(specs: Any) -> bool:
    """Whether a list is one spec, ``["name", {arguments}]``, rather than several."""
    return (
        isinstance(specs, list | tuple)
        and len(specs) == 2
        and isinstance(specs[0], str)
        and isinstance(specs[1], Mapping)
        and not isinstance(specs[1].get("name"), str)
    )


def normalize_reward_specs(specs: Iterable[Any], *, allow_imports: bool = False) -> list[list[Any]]:
    """Convert specs, nested ones too, to the canonical form ``["name", {arguments}]`` in JSON values.

    Args:
        specs: list of arguments of `make_reward`.
        allow_imports: accept names of the form ``"module:function"``.

    Raises:
        ValueError: naming the place (``rewards[1].of``), if a spec is malformed, a name unknown, an argument
            unknown or not a JSON value, or an object was given that is not registered.

    Example:
        >>> normalize_reward_specs(["length", ("clipped", {"of": "repetition", "low": -1})])
        [['length', {}], ['clipped', {'of': ['repetition', {}], 'low': -1}]]
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Iterable):
        raise ValueError(f"rewards must be a list of specs, got {specs!r}")
    return [_normalize(spec, f"rewards[{i}]", allow_imports) for i, spec in enumerate(specs)]


def spec_of(term: RewardTerm) -> list[Any] | None:
    """The spec ``[name, {arguments}]`` of a term in JSON values, or None if it has none.

    A term has a spec if it is registered and its arguments are JSON values or terms with a spec.

    >>> spec_of(make_reward("length")), spec_of(make_reward(lambda completions: [0.0]))
    (['length', {}], None)
    """
    try:
        return _normalize(term, "term", True)
    except ValueError:
        return None


# -- internals ---------------------------------------------------------------------------------------------


def _load_builtins() -> None:
    for module in MODULES:
        import_module(f"textenv.rewards.{module}")


def _origin(target: Any) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', None) or repr(target)}"


def _find(name: str, allow_imports: bool) -> Callable[..., Any]:
    if name in REWARDS:
        return REWARDS[name]
    _load_builtins()
    if name in REWARDS:
        return REWARDS[name]
    if name == OF_TASK:
        raise ValueError(
            f"reward {OF_TASK!r} stands for the task's own rewards: it can only be an item of the rewards of "
            "an environment that has a task"
        )
    if name.startswith(OBJECT_PREFIX):
        raise ValueError(
            f"reward {name.removeprefix(OBJECT_PREFIX)!r} was given as a Python object, "
            "which a spec can't hold; register it with register_reward and use its name"
        )
    if ":" in name:
        if not allow_imports:
            raise ValueError(
                f"reward {name!r} names a function to import; register it with register_reward, "
                "or pass allow_imports=True if you trust where the spec comes from"
            )
        return _import(name)
    raise ValueError(f"unknown reward {name!r}; {nearest(name, REWARDS)}")


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        target = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r} can't be imported: {error}") from error
    if not callable(target):
        raise ValueError(
            f"reward {name!r} must be a function or a RewardTerm class, got {type(target).__name__}"
        )
    return target


def _from_target(
    target: Callable[..., Any], name: str | None, arguments: dict[str, Any], allow_imports: bool = False
) -> RewardTerm:
    if not inspect.isclass(target):
        called = name or _name_of(target)
        function = FunctionReward(target, called, **arguments)
        if REWARDS.get(called) is target:
            function.options = FunctionOptions(**OPTIONS.get(called, {}))
        return function
    if not issubclass(target, RewardTerm):
        raise ValueError(f"reward {name!r} must be a RewardTerm class, got {target.__name__}")
    _check_arguments(target, name or target.name, arguments)
    for key, count in target.nested.items():
        if key in arguments:
            inner = arguments[key]
            many = count == "many"
            built = [
                make_reward(one, allow_imports=allow_imports)
                for one in _nested(inner, count, f"{name}.{key}")
            ]
            arguments[key] = built if many else built[0]
    term = target(**arguments)
    if name:
        term.name = name
    return term


def _name_of(function: Callable[..., Any]) -> str:
    for name, target in REWARDS.items():
        if target is function:
            return name
    name = getattr(function, "__name__", type(function).__name__)
    return "function" if name == "<lambda>" else name


def _nested(value: Any, count: str, where: str) -> list[Any]:
    if count == "one":
        return [value]
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{where} must be a list of reward specs, got {value!r}")
    return reward_list(value)


def _check_arguments(target: type[RewardTerm], name: str, arguments: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(target.__init__).parameters.values())[1:]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    for key in arguments:
        if key not in known:
            raise ValueError(f"reward {name!r} has no argument {key!r}; {nearest(key, known)}")
    for p in parameters:
        required = p.default is inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_POSITIONAL
        if known and required and p.name not in arguments:
            raise ValueError(f"reward {name!r} needs the argument {p.name!r}")


def _take_apart(reward: Any) -> tuple[str, dict[str, Any], Callable[..., Any]]:
    """Name, arguments and class or function of a reward that was given as an object."""
    if isinstance(reward, FunctionReward):
        return reward.name, reward.arguments(), reward.function
    if isinstance(reward, RewardTerm):
        return reward.name, reward.arguments(), type(reward)
    if inspect.isclass(reward):
        return getattr(reward, "name", reward.__name__), {}, reward
    return _name_of(reward), {}, reward


def _normalize(spec: Any, where: str, allow_imports: bool) -> list[Any]:
    if isinstance(spec, RewardTerm) or callable(spec):
        name, arguments, target = _take_apart(spec)
        if REWARDS.get(name) is not target:
            what = f"a {target.__name__}" if inspect.isclass(target) else f"the function {name!r}"
            raise ValueError(f"{where} is {what}, which is not registered; use register_reward")
    else:
        try:
            name, arguments = split_spec(spec)
            target = _find(name, allow_imports)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    nested: Mapping[str, str] = {}
    if isinstance(target, type) and issubclass(target, RewardTerm):
        nested = target.nested
        try:
            _check_arguments(target, name, arguments)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    written: dict[str, Any] = {}
    for key, value in arguments.items():
        place = f"{where}.{key}"
        if key in nested:
            many = nested[key] == "many"
            inner = [
                _normalize(one, f"{place}[{i}]" if many else place, allow_imports)
                for i, one in enumerate(_nested(value, nested[key], place))
            ]
            written[key] = inner if many else inner[0]
        else:
            written[key] = _json_value(value, place)
    return [name, written]


def _json_value(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value}")
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _json_value(item, f"{where}.{key}") for key, item in value.items()}
    raise ValueError(f"{where} must be a JSON value, got {type(value).__name__}")
