"""Find the environment that returned an observation, so that a policy can use its token constraints.

Environments register the arrays that they return; an entry is dropped when its array is. A copy of an
observation (converted, stacked or unpickled) is not recognised.
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
