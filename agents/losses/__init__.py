"""Losses and advantages: pure functions of tensors."""

import importlib
import warnings

import lazy_loader

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
    hint = f"use textenv.agents.losses.{module}.{new}" if not new.startswith("_") else "write it out"
    warnings.warn(f"textenv.agents.losses.{name} will be removed; {hint}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f"{__name__}.{module}"), new)
