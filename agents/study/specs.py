"""Reward specs of a study's file, with the user's functions imported."""

from __future__ import annotations

from typing import Any

from textenv.agents.base.user_code import import_rewards
from textenv.rewards.registry import reward_list


def ready(spec: Any) -> Any:
    """A spec, or a list of them, with the user's own functions imported.

    ``run_study`` has asked whether the functions may be imported.
    """
    return import_rewards(spec, lambda place: True)


def ready_list(spec: Any) -> list[Any] | None:
    """One spec, or a list of them, as a list; None is the task's."""
    return None if spec is None else reward_list(ready(spec))
