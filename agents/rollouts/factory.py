"""Who plays an online agent's episodes, made of what its argument ``rollouts`` says."""

from __future__ import annotations

from textenv.agents.rollouts.engine_collector import EngineCollector
from textenv.agents.rollouts.ray_collector import RayCollector
from textenv.agents.settings.engine_rollouts import EngineRollouts
from textenv.agents.settings.ray_rollouts import RayRollouts


def as_collector(
    rollouts: RayRollouts | RayCollector | EngineRollouts | EngineCollector | None,
) -> RayCollector | EngineCollector | None:
    """What plays for an agent; None is the agent's own process.

    Raises:
        TypeError: if ``rollouts`` is something else.
    """
    if rollouts is None or isinstance(rollouts, RayCollector | EngineCollector):
        return rollouts
    if isinstance(rollouts, EngineRollouts):
        return EngineCollector(rollouts)
    if not isinstance(rollouts, RayRollouts):
        raise TypeError(
            "rollouts must be RayRollouts, RayCollector, EngineRollouts or EngineCollector, "
            f"got {type(rollouts).__name__}"
        )
    return RayCollector(rollouts) if rollouts.num_actors else None
