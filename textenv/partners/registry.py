"""The registry of partners, and specs ``["name", {arguments}]`` in JSON values that make them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from textenv.partners.catalog import BUILTIN
from textenv.partners.partner import ON_ERROR, Partner, ToolDescription, replies_by
from textenv.utils.checks import check_at_least, check_choice, check_positive
from textenv.utils.names import check_name, nearest, shown
from textenv.utils.specs import split_spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTNERS: dict[str, type[Partner]] = {}
"""Name -> class, of those that are loaded."""
OPTIONS = ("workers", "timeout", "on_error")
"""Arguments of every spec: they say how the environment calls the partner."""

P = TypeVar("P", bound=type[Partner])


@dataclass(frozen=True)
class PartnerSpec:
    """A checked spec, from which an environment makes one partner for each row."""

    cls: type[Partner]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the constructor."""
    begin: Mapping[str, Any] = field(default_factory=dict)
    """Of ``Partner.begin``; columns of the prompt come first."""
    given: Any = None
    """What it was made from."""
    example: Partner | None = None
    """A partner that was given as an object; rows get copies of it."""
    workers: int = 0
    timeout: float | None = None
    on_error: str = "raise"

    def make(self) -> Partner:
        """A new partner."""
        return self.cls(**self.arguments) if self.example is None else copy.deepcopy(self.example)

    def bound(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> Partner:
        """A new partner that knows the tokenizer; see ``Partner.bind``."""
        partner = self.make()
        partner.bind(tokenizer, chat=chat)
        return partner

    def tools(self, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> ToolDescription:
        """What the policy is shown of the partner's tools; see ``Partner.bind``."""
        if self.cls.bind is Partner.bind:
            return None
        partner = self.make()
        tools = partner.bind(tokenizer, chat=chat)
        partner.close()
        return tools

    def begin_arguments(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of ``Partner.begin``: those of the spec, and the columns of a prompt that it takes."""
        known = self._named_columns
        if known is not None:
            columns = {name: value for name, value in columns.items() if name in known}
        return {**self.begin, **columns}

    @cached_property
    def _named_columns(self) -> frozenset[str] | None:
        """The columns that ``Partner.begin`` names; None if it takes all."""
        parameters = inspect.signature(self.cls.begin).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        return None if takes_all else frozenset(parameters)

    @property
    def is_async(self) -> bool:
        """Whether ``reply`` is a coroutine function."""
        return inspect.iscoroutinefunction(getattr(self.cls, replies_by(self.cls)))

    @property
    def batched(self) -> bool:
        """Whether one call replies to all rows."""
        return replies_by(self.cls) == "reply_batch"


def register_partner(name: str, *, override: bool = False) -> Callable[[P], P]:
    """Register a `Partner` class under ``name``: a decorator.

    Args:
        name: letters, digits and ``. _ -``.
        override: replace another partner of that name. Registering the same class again is always allowed.

    Raises:
        ValueError: if the name is malformed or belongs to another partner.
        TypeError: if the decorated object is not a `Partner` class that can reply.

    Example:
        >>> @register_partner("parrot-example")
        ... class Parrot(Partner):
        ...     '''Says what it hears.'''
        ...     def reply(self, text):
        ...         return text
        >>> make_partner("parrot-example").make().reply("hello")
        'hello'
        >>> del PARTNERS["parrot-example"]
    """
    check_name("partner", name)

    def register(cls: P) -> P:
        if not (inspect.isclass(cls) and issubclass(cls, Partner)):
            raise TypeError(f"partner {name!r} must be a Partner subclass, got {shown(cls)}")
        replies_by(cls)
        built_in = BUILTIN.get(name)
        taken = PARTNERS.get(name)
        origin = f"{cls.__module__}.{cls.__qualname__}"
        if built_in is not None and cls.__module__ != built_in[0] and not override:
            raise ValueError(
                f"partner {name!r} is already registered by {built_in[0]}; choose another name or pass "
                "override=True"
            )
        if taken is not None and not override and f"{taken.__module__}.{taken.__qualname__}" != origin:
            raise ValueError(
                f"partner {name!r} is already registered as {taken.__module__}.{taken.__qualname__}; "
                "choose another name or pass override=True"
            )
        PARTNERS[name] = cls
        return cls

    return register


def partner_names() -> list[str]:
    """Every registered name, sorted."""
    return sorted({*PARTNERS, *BUILTIN})


def describe() -> dict[str, str]:
    """Every registered name with one line about it."""
    return {
        name: BUILTIN[name][1] if name in BUILTIN else (inspect.getdoc(PARTNERS[name]) or "").split("\n")[0]
        for name in partner_names()
    }


def make_partner(spec: Any, *, allow_imports: bool = False) -> PartnerSpec:
    """Check a spec of a partner.

    Args:
        spec: a name, ``["name", {arguments}]``, ``{"name": name, **arguments}``, a `Partner` class or object,
            or a `PartnerSpec` (returned as it is). Arguments belong to the constructor, or else to ``begin``;
            ``workers``, ``timeout`` and ``on_error`` are those of `Partner`.
        allow_imports: import code that an argument names as ``"module:name"``. Do not use it for specs that
            you do not trust.

    Raises:
        ValueError: if the spec is malformed, a name unknown, or an argument does not fit.
        TypeError: if it is something else.
    """
    if isinstance(spec, PartnerSpec):
        return spec
    if isinstance(spec, Partner):
        return _checked(type(spec), {}, spec, example=spec)
    if inspect.isclass(spec) and issubclass(spec, Partner):
        return _checked(spec, {}, spec)
    named = split_spec(spec)
    if named is None:
        raise ValueError(
            f'partner must be a Partner, "name", ["name", {{arguments}}] or {{"name": ..., arguments}}, '
            f"got {shown(spec)}"
        )
    name, arguments = named
    return _checked(_find(name), arguments, [name, arguments], allow_imports=allow_imports)


def _find(name: str) -> type[Partner]:
    if name not in PARTNERS and name in BUILTIN:
        import_module(BUILTIN[name][0])
    if name not in PARTNERS:
        raise ValueError(f"unknown partner {name!r}; {nearest(name, partner_names())}")
    return PARTNERS[name]


def _checked(
    cls: type[Partner],
    arguments: Mapping[str, Any],
    given: Any,
    example: Partner | None = None,
    allow_imports: bool = False,
) -> PartnerSpec:
    """Sort the arguments of a spec by who takes them, and check the options."""
    method = replies_by(cls)
    called = cls.__name__ if not isinstance(given, list) else repr(given[0])
    options = {name: getattr(cls if example is None else example, name) for name in OPTIONS}
    own = _parameters(cls.__init__) if cls.__init__ is not object.__init__ else {}
    opening = _parameters(cls.begin)
    made: dict[str, Any] = {}
    begun: dict[str, Any] = {}
    for key, value in arguments.items():
        if key in own:
            made[key] = value
        elif key in OPTIONS:
            options[key] = value
        elif key in opening and key != "rng":
            begun[key] = value
        else:
            known = [*own, *(name for name in opening if name != "rng"), *OPTIONS]
            raise ValueError(f"partner {called} has no argument {key!r}; {nearest(key, known)}")
    if example is None:
        for name, parameter in own.items():
            if parameter.default is inspect.Parameter.empty and name not in made:
                raise ValueError(f"partner {called} needs the argument {name!r}")
    where = f"partner {called}: "
    check_at_least(f"{where}workers", options["workers"], 0)
    check_choice(f"{where}on_error", options["on_error"], ON_ERROR)
    if example is None:
        made = dict(cls.resolve(made, allow_imports=allow_imports))
    found = PartnerSpec(cls, made, begun, given, example, **options)
    if options["timeout"] is not None:
        check_positive(f"{where}timeout", options["timeout"])
        if not (options["workers"] or found.is_async):
            raise ValueError(f"{where}timeout needs workers >= 1, or a coroutine {method}; got workers 0")
    if found.batched and options["workers"]:
        raise ValueError(f"{where}workers must be 0, for reply_batch replies to all rows at once")
    return found


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a method, without ``self``."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in kinds}
