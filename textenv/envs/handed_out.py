"""Which environment an observation comes from, so that a policy can apply its rules without being told.

Environments remember the arrays that they hand out, for as long as somebody keeps them. A copy (a converted,
stacked or unpickled observation) is not recognised.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textenv.envs.vector_env import TextVectorEnv

_SOURCES: dict[int, tuple[weakref.ref[Any], weakref.ref[TextVectorEnv]]] = {}
"""Address of an observation's ``input_ids`` -> the array itself, and where it comes from."""


def handed_out(env: TextVectorEnv, obs: dict[str, Any]) -> dict[str, Any]:
    """Remember that ``obs`` comes from ``env``, and return it."""
    address = id(obs["input_ids"])
    array = weakref.ref(obs["input_ids"], lambda _: _SOURCES.pop(address, None))
    _SOURCES[address] = array, weakref.ref(env)
    return obs


def source_of(obs: Any) -> TextVectorEnv | None:
    """The environment that handed out ``obs``, None if that is unknown or gone."""
    found = _SOURCES.get(id(obs["input_ids"]))
    if found is None or found[0]() is not obs["input_ids"]:
        return None
    return found[1]()
