"""Losses and advantages: pure functions of tensors."""

import importlib

import lazy_loader

from textenv.utils.deprecation import warn_renamed

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_RENAMED = {
    "mean_of_rows": "preference._mean",
    "next_own_values": "advantages.next_action_values",
    "own": "masked.zero_unmasked",
    "weighted_mean": "reward_model._weighted_mean",
}


def __getattr__(name: str) -> object:
    if name not in _RENAMED:
        return _load(name)
    module, new = _RENAMED[name].split(".")
    public = None if new.startswith("_") else f"textenv.agents.losses.{module}.{new}"
    warn_renamed(f"textenv.agents.losses.{name}", public)
    return getattr(importlib.import_module(f"{__name__}.{module}"), new)
