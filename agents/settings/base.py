"""Settings of agents: frozen dataclasses that check themselves when they are made.

The docstring under a field is its documentation, for readers and, through ``field_docs``, for ``--help``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from textenv.agents.settings import config_origin as origin
from textenv.agents.settings.effects import Idle, refuse
from textenv.utils.config_types import (
    builtin,
    check_size,
    fits,
    inside,
    number_hint,
    plain,
    spell,
    wants_tuple,
)
from textenv.utils.names import nearest, shown


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every settings class: types and ranges are checked at construction, values are JSON values.

    Numbers are finite numbers that float32 holds, and integers fit into int64, whatever the range says:
    ``inf)`` stands for no other bound. numpy's scalars become Python's.

    A subclass lists its ranges in ``validate``:

        >>> @dataclass(frozen=True, kw_only=True)
        ... class ClipConfig(Config):
        ...     clip_range: float = 0.2
        ...     def validate(self) -> None:
        ...         super().validate()
        ...         self.check(clip_range="(0, 1)")
        >>> ClipConfig(clip_range=2)
        Traceback (most recent call last):
        ValueError: clip_range must be in (0, 1), got 2

    Raises:
        TypeError: if a value does not have its field's type.
        ValueError: if a value is out of range, or has no effect beside the others.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember which settings were given: a value that equals its default is a choice, too."""
        made = super().__new__(cls)
        object.__setattr__(made, "_given", origin.take_given(kwargs))
        return made

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            given = getattr(self, name)
            value = builtin(given)
            if isinstance(value, list) and wants_tuple(hint):  # JSON and YAML have no tuples
                value = tuple(value)
            if not fits(value, hint):
                error = ValueError if typing.get_origin(hint) is Literal else TypeError
                raise error(f"{name} must be {spell(hint)}, got {shown(value)}{number_hint(value)}")
            for item in value if isinstance(value, tuple) else (value,):
                check_size(name, item)
            if value is not given:
                object.__setattr__(self, name, value)
        self.validate()
        object.__setattr__(self, "_saved", origin.loading.get())
        if not self.saved:
            refuse(self, self.refused(self.idle()))

    def validate(self) -> None:
        """Check the ranges; a subclass calls ``super().validate()`` first and then ``self.check``."""

    def idle(self) -> Idle:
        """Settings that differ from their default but have no effect given the others, with the reason.

        A subclass adds its own to ``super().idle()``, by ``changed``.
        """
        return {}

    def changed(self, *names: str, because: str) -> Idle:
        """Those of the settings that differ from their default, each with the reason."""
        defaults = {spec.name: _default(spec) for spec in fields(self)}
        return {name: because for name in names if getattr(self, name) != defaults[name]}

    def given(self) -> dict[str, Any]:
        """The settings that were given, by name; the others are defaults, of the class or of a task."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name in self._names()}

    def refused(self, found: Idle) -> Idle:
        """The settings without effect that the user gave; defaults are not refused."""
        return {} if self.saved else {name: why for name, why in found.items() if name in self._names()}

    def _names(self) -> frozenset[str]:
        """Names of the settings that were given."""
        names: frozenset[str] = getattr(self, "_given")  # noqa: B009 (no field, so not declared)
        return names

    @classmethod
    def with_defaults(cls, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Self:
        """Settings from given values and other defaults than those of the class.

        Raises:
            TypeError: if one of the two is no mapping, or a value does not have its field's type.
            ValueError: if a key is no field, a value is out of range, or a setting that was given has no
                effect.
        """
        cls._check_names(given)
        cls._check_names(defaults)
        with origin.as_given(given), origin.as_saved():
            made = cls(**{**defaults, **given})
        object.__setattr__(made, "_saved", False)
        refuse(made, made.refused(made.idle()))
        return made

    def check(self, **ranges: str) -> None:
        """Check fields against ranges; None passes, because the type check decides whether it is allowed.

        Args:
            ranges: field name -> an interval, ``"(0, 1]"`` or ``"(0, inf)"``, or a comparison, ``">= 1"``.

        Raises:
            ValueError: if a field's value lies outside.
        """
        for name, span in ranges.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if any(item is not None and not inside(item, span) for item in values):
                where = span if span[0] in "<>" else f"in {span}"
                raise ValueError(f"{name} must be {where}, got {shown(value)}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values (tuples become lists)."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make the settings from what ``to_dict`` gave or a YAML file holds; the rest keeps its default.

        Raises:
            TypeError: if it is no mapping.
            ValueError: if a key is no field; the error names the nearest one.
        """
        cls._check_names(values)
        return cls(**values)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> Self:
        """Like ``from_dict``, for settings of a checkpoint or of ``run.json``: they may be without effect.

        Raises:
            TypeError: if it is no mapping, or a value does not have its field's type.
            ValueError: if a key is no field, or a value is out of range.
        """
        cls._check_names(values)
        with origin.as_saved():
            return cls(**values)

    @property
    def saved(self) -> bool:
        """Whether they, or those that they were made of by ``replace``, are from ``from_saved``."""
        return bool(getattr(self, "_saved", False))

    def replace(self, **changes: Any) -> Self:
        """The same settings with some changed, checked again.

        Raises:
            ValueError: if a name is no field (the error names the nearest one), or a changed setting has no
                effect, or another one has lost its.
        """
        self._check_names(changes)
        given = self._names() | changes.keys()
        if not self.saved:
            with origin.as_given(given):
                return replace(self, **changes)
        with origin.as_given(given), origin.as_saved():
            made = replace(self, **changes)
        before = self.idle().keys() - changes.keys()
        refuse(made, {name: why for name, why in made.idle().items() if name not in before})
        return made

    @classmethod
    def _check_names(cls, values: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise TypeError(f"{cls.__name__} must be made of settings by name, got {shown(values)}")
        names = [spec.name for spec in fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(f"{cls.__name__} has no setting {key!r}; {nearest(key, names)}")


@dataclass(frozen=True, kw_only=True)
class AgentConfig(Config):
    """Settings that every agent has."""

    seed: int = 0
    """Seed of everything random in the run: prompts, sampling noise, minibatch order, new heads."""
    learning_rate: float = 3e-6
    """Peak learning rate of AdamW. 3e-6 suits pretrained language models, about 3e-4 tiny ones."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moment."""
    adam_eps: float = 1e-8
    """Term added to AdamW's denominator."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or AdamW with 8-bit moments (a fourth of their memory), which needs the extra "quantized"."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this L2 norm over all parameters; None leaves them as they are."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or decay to zero, linear or as half a cosine."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    autocast: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the matrix products in training; weights keep their own. float32 is no autocast."""
    max_tokens_per_microbatch: int = 16384
    """Padded tokens in one forward and backward pass. It bounds memory and does not change the gradient."""
    eval_every: int = 0
    """Evaluate every this many iterations (online) or optimizer steps (offline); 0: only at the end."""
    eval_episodes: int = 256
    """Episodes of one evaluation."""
    checkpoint_every: int = 0
    """Save every this many iterations (online) or optimizer steps (offline); 0: only at the end."""
    keep_checkpoints: int = 2
    """Number of the latest checkpoints that are kept on disk."""
    log_every: int = 1
    """Log every this many iterations (online) or optimizer steps (offline)."""
    report: bool = True
    """With a run folder: also evaluate before the first step, and write report.html at the end."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            seed=">= 0",
            learning_rate="[0, inf)",
            weight_decay="[0, inf)",
            adam_betas="[0, 1)",
            adam_eps="(0, inf)",
            max_grad_norm="(0, inf)",
            warmup_steps=">= 0",
            max_tokens_per_microbatch=">= 1",
            eval_every=">= 0",
            eval_episodes=">= 1",
            checkpoint_every=">= 0",
            keep_checkpoints=">= 1",
            log_every=">= 1",
        )


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(AgentConfig):
    """Settings of agents that generate the episodes they learn from."""

    iterations: int | None = None
    """Number of iterations (collect, then update). 100 if neither this nor ``total_episodes`` is given."""
    total_episodes: int | None = None
    """Episodes of the whole run, instead of ``iterations``; a multiple of ``episodes_per_iteration``."""
    episodes_per_iteration: int = 128
    """Episodes generated in each iteration."""
    epochs: int = 4
    """Passes over the episodes of an iteration."""
    minibatches: int = 4
    """Optimizer steps in each pass."""

    def validate(self) -> None:
        """Check the ranges, and that the length of the run is said in one way."""
        super().validate()
        self.check(
            iterations=">= 1",
            total_episodes=">= 1",
            episodes_per_iteration=">= 1",
            epochs=">= 1",
            minibatches=">= 1",
        )
        if self.iterations is not None and self.total_episodes is not None:
            raise ValueError(
                "iterations and total_episodes are two ways to say one thing, give one; "
                f"got {self.iterations} and {self.total_episodes}"
            )
        size = self.episodes_per_iteration
        if self.total_episodes is not None and self.total_episodes % size:
            below = self.total_episodes // size * size
            near = [count for count in (below, below + size) if count]
            raise ValueError(
                f"total_episodes must be a multiple of episodes_per_iteration ({size}), "
                f"got {self.total_episodes}; near it: {', '.join(map(str, near))}"
            )
        if self.minibatches > size:
            raise ValueError(
                f"minibatches must be <= episodes_per_iteration ({size}), got {self.minibatches}"
            )

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run."""
        if self.total_episodes is not None:
            return self.total_episodes // self.episodes_per_iteration
        return 100 if self.iterations is None else self.iterations


@dataclass(frozen=True, kw_only=True)
class OfflineConfig(AgentConfig):
    """Settings of agents that learn from a data set."""

    steps: int | None = None
    """Optimizer steps of the whole run, instead of ``epochs``."""
    epochs: int | None = None
    """Passes over the data set. 1 if neither this nor ``steps`` is given."""
    batch_size: int = 32
    """Episodes (or pairs) of one optimizer step."""

    def validate(self) -> None:
        """Check the ranges, and that the length of the run is said in one way."""
        super().validate()
        self.check(steps=">= 1", epochs=">= 1", batch_size=">= 1")
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                "steps and epochs are two ways to say one thing, give one; "
                f"got {self.steps} and {self.epochs}"
            )

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of the whole run on ``rows`` rows of data; a short last batch counts as a step.

        Raises:
            ValueError: if there are no rows.
        """
        if rows < 1:
            raise ValueError(f"rows must be >= 1, got {rows}")
        if self.steps is not None:
            return self.steps
        return (self.epochs or 1) * -(-rows // self.batch_size)


def given_settings(config: AgentConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that were given, by name."""
    return config.given() if isinstance(config, AgentConfig) else dict(config or {})


def _default(spec: Field[Any]) -> Any:
    return spec.default if spec.default_factory is MISSING else spec.default_factory()


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and its bases, as one line of text each.

    Raises:
        ValueError: if a field has none.

    >>> field_docs(OfflineConfig)["batch_size"]
    'Episodes (or pairs) of one optimizer step.'
    """
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                docs[statement.target.id] = " ".join(following.value.value.split())
    names = [spec.name for spec in fields(cls)]
    missing = [name for name in names if name not in docs]
    if missing:
        raise ValueError(
            f"{cls.__name__} must have a docstring under every field, got none under {', '.join(missing)}"
        )
    return {name: docs[name] for name in names}


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {spec.name: hints[spec.name] for spec in fields(cls)}
