"""Which environment an observation comes from, so that a policy can find its token constraints.

Environments register the arrays that they return, as long as these are referenced. A copy (a converted,
stacked or unpickled observation) is not recognised.
"""

from __future__ import annotations

import weakref
from typing import Any

_SOURCES: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
"""Address of an observation's ``input_ids`` -> the array itself, and its environment."""


def remember_source(env: Any, obs: dict[str, Any]) -> dict[str, Any]:
    """Register ``env`` as the source of ``obs``, and return ``obs``."""
    address = id(obs["input_ids"])
    array = weakref.ref(obs["input_ids"], lambda _: _SOURCES.pop(address, None))
    _SOURCES[address] = array, weakref.ref(env)
    return obs


def source_of(obs: Any) -> Any:
    """The environment that returned ``obs``, or None if it is not known or no longer exists."""
    found = _SOURCES.get(id(obs["input_ids"]))
    if found is None or found[0]() is not obs["input_ids"]:
        return None
    return found[1]()
