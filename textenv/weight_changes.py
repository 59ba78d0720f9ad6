"""Noticing that weights may have changed, so that what was computed from them is computed again."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class WeightChanges:
    """How often any weights of this process may have changed: optimizer steps and noted loads."""

    count = 0


def note_weight_change(*_: Any) -> None:
    """Count a change; takes what any hook is called with."""
    WeightChanges.count += 1


register_optimizer_step_post_hook(note_weight_change)


def tracked(model: nn.Module) -> list[nn.Parameter]:
    """Parameters whose in-place edits torch counts."""
    return [parameter for parameter in model.parameters() if not parameter.is_inference()]
