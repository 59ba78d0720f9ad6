"""Detects changes of a model's weights, so that caches computed from old weights are dropped.

A watch compares, by identity and in C loops, the model's parts with those of the last call: modules,
parameters and buffers, their versions and memory addresses, and the state of adapters (active, disabled,
merged, scaling). Optimizer steps are counted, too, because fused optimizers do not change a parameter's
version.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class WeightChanges:
    """Number of possible weight changes in this process: optimizer steps and loads."""

    count = 0


def note_weight_change(*_: Any) -> None:
    """Count a change; accepts the arguments of any hook."""
    WeightChanges.count += 1


register_optimizer_step_post_hook(note_weight_change)

_END: dict[str, object] = {"end": object()}
"""Last item of the walk over a model, so that an addition to its last module is detected, too."""
_version = attrgetter("_version")
_adapter_state = itemgetter("_disable_adapters", "_active_adapter")


class ModelWatch:
    """Version numbers of a model's weights and layout; get it from ``watch_of``.

    In-place edits through ``.data`` (``p.data.mul_(2)``, which torch does not count either) and edits of
    memory outside torch are not detected.

    Args:
        model: any module; it is not kept alive.
        count_steps: whether each optimizer step counts as a change. False for models of which no tensor is
            in an optimizer.
    """

    def __init__(self, model: nn.Module, *, count_steps: bool = True) -> None:
        self.lock = threading.RLock()
        """Held while the model runs, which is not safe in two threads at once."""
        self._model = weakref.ref(model)
        self._count_steps = count_steps
        self._version = 0
        self._layout = 0
        self._modules_seen = 0
        self._tree: _Walk | None = None
        self._adapters_seen: list[tuple[Any, Any]] = []
        self._look()
        self._state = 0, WeightChanges.count, sum(map(_version, self._versioned))

    def state(self) -> tuple[int, int]:
        """Two numbers, the version and the layout.

        The version changes if anything has changed since the last call; equal numbers mean an equal model.
        The layout changes if something was replaced or moved in memory, or adapters were switched: buffers,
        masks and CUDA graphs that were made for the model are then invalid.
        """
        with self.lock:
            self._poll()
            return self._version, self._layout

    def modules(self) -> int:
        """A number that changes if a module was replaced, added or removed."""
        with self.lock:
            if self._tree is None or not self._tree.holds():
                model = self._alive()
                self._tree = _Walk([m._modules for m in model.modules() if m._modules])
                self._modules_seen += 1
            return self._modules_seen

    def _alive(self) -> nn.Module:
        model = self._model()
        assert model is not None  # the caller holds the model
        return model

    def _poll(self) -> None:
        if self._replaced or not self._walk.holds() or self._where() != self._addresses:
            self._look()
            self._layout += 1
        elif self._adapters() != self._adapters_seen:
            self._adapters_seen = _frozen(self._adapters())
            self._layout += 1
        state = self._layout, WeightChanges.count, sum(map(_version, self._versioned))
        if state != self._state:
            steps = state[1] - self._state[1] if self._count_steps else 0
            same = state[0] == self._state[0] and state[2] == self._state[2]
            self._version += steps if same else max(steps, 1)
            self._state = state

    def _look(self) -> None:
        """Store the model's present parts."""
        model = self._alive()
        modules = list(model.modules())
        adapters = [
            vars(m) for m in modules if "_disable_adapters" in vars(m) and "_active_adapter" in vars(m)
        ]
        self._adapter_dicts = adapters
        parts: list[Any] = [d for m in modules for d in (m._modules, m._parameters, m._buffers) if d]
        parts += [d["scaling"] for d in adapters if isinstance(d.get("scaling"), dict)]
        merged = [d["merged_adapters"] for d in adapters if isinstance(d.get("merged_adapters"), list)]
        self._walk = _Walk(parts, merged)
        tensors = list({id(t): t for t in chain(model.parameters(), model.buffers())}.values())
        self._versioned = [t for t in tensors if not t.is_inference()]
        self._placed = [t for t in tensors if _has_address(t)]
        # A freed address may be reused, so an equal address does not prove that the tensor is the same.
        replaced: list[Any] = []
        self._replaced = replaced
        self._storages = [weakref.ref(t.untyped_storage(), replaced.append) for t in self._placed]
        self._addresses = self._where()
        self._adapters_seen = _frozen(self._adapters())

    def _where(self) -> list[int]:
        return list(map(torch.Tensor.data_ptr, self._placed))

    def _adapters(self) -> list[tuple[Any, Any]]:
        return list(map(_adapter_state, self._adapter_dicts))


class _Walk:
    """The values of some dicts and lists, compared by identity with earlier ones."""

    def __init__(self, dicts: Iterable[dict[str, Any]], lists: Iterable[list[Any]] = ()) -> None:
        self._dicts, self._lists = [*dicts], list(lists)
        self._seen = list(self._values())

    def _values(self) -> Iterator[Any]:
        return chain(
            chain.from_iterable(self._lists),
            chain.from_iterable(map(dict.values, self._dicts)),
            _END.values(),
        )

    def holds(self) -> bool:
        """Whether they contain the same objects in the same order."""
        return all(map(is_, self._values(), self._seen))


def _frozen(states: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """The states of adapters, with copies of lists that may be changed in place."""
    return [(off, list(active) if isinstance(active, list) else active) for off, active in states]


def _has_address(tensor: Tensor) -> bool:
    """Whether the tensor has its own memory (wrapper subclasses have none)."""
    try:
        tensor.data_ptr()
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return False
    return True


_WATCHES: weakref.WeakKeyDictionary[nn.Module, ModelWatch] = weakref.WeakKeyDictionary()


def watch_of(model: nn.Module) -> ModelWatch:
    """The watch of a model; there is one per model."""
    watch = _WATCHES.get(model)
    if watch is None:
        watch = _WATCHES.setdefault(model, ModelWatch(model))
    return watch


def float_settings(model: nn.Module) -> tuple[tuple[str, float], ...]:
    """All float attributes of the model's modules: dropout probabilities, scales, epsilons.

    For an active dropout also whether its module is in training mode.
    """
    found: list[tuple[str, float]] = []
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) is float:
                found.append((name, value))
                if value > 0.0 and ("drop" in name or name == "p"):
                    found.append(("training", float(module.training)))
    return tuple(found)
