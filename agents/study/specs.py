"""Reward specs of a study's file, made ready for environments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textenv.agents.scorer import SETTINGS, Scorer
from textenv.agents.user_code import import_rewards


def ready(spec: Any) -> Any:
    """A spec with the user's own functions imported, and trained reward models read as they were trained.

    ``run_study`` has asked whether the functions may be imported.

    Args:
        spec: one spec or a list of them; ``["reward-model", {"model": FOLDER}]`` may name a folder that
            ``textenv reward-model`` or a pipeline wrote, and needs to say nothing more of it.
    """
    return _trained(import_rewards(spec, lambda place: True))


def ready_list(spec: Any) -> list[Any] | None:
    """One spec, or a list of them, as a list; None is the task's."""
    if spec is None:
        return None
    return [ready(spec)] if not isinstance(spec, list) or _is_pair(spec) else [ready(one) for one in spec]


def _trained(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {name: _trained(value) for name, value in spec.items()}
    if not isinstance(spec, list):
        return spec
    if _is_pair(spec) and spec[0] == "reward-model":
        folder = str(spec[1].get("model", ""))
        if (Path(folder) / SETTINGS).is_file():
            return [spec[0], {**Scorer.load(folder).reward_spec(folder)[1], **spec[1]}]
    return [_trained(one) for one in spec]


def _is_pair(spec: list[Any]) -> bool:
    """Whether a list is one spec, [name, {argument: value}], rather than several."""
    return len(spec) == 2 and isinstance(spec[0], str) and isinstance(spec[1], Mapping)
