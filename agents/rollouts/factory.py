"""Make the collector that an agent's argument ``rollouts`` asks for."""

from __future__ import annotations

from textenv.agents.rollouts.collector import Collector, LocalCollector
from textenv.agents.settings.engine_rollouts import EngineRollouts
from textenv.agents.settings.ray_rollouts import RayRollouts


def make_collector(rollouts: RayRollouts | EngineRollouts | Collector | None) -> Collector:
    """The collector for an agent.

    Args:
        rollouts: settings, or a collector; None generates in the agent's own process.

    Raises:
        TypeError: if ``rollouts`` is something else.
    """
    if rollouts is None or (isinstance(rollouts, RayRollouts) and not rollouts.num_actors):
        return LocalCollector()
    if isinstance(rollouts, RayRollouts):
        from textenv.agents.rollouts.ray_collector import RayCollector

        return RayCollector(rollouts)
    if isinstance(rollouts, EngineRollouts):
        from textenv.agents.rollouts.engine_collector import EngineCollector

        return EngineCollector(rollouts)
    if not isinstance(rollouts, Collector):
        raise TypeError(
            f"rollouts must be RayRollouts, EngineRollouts or a Collector, got {type(rollouts).__name__}"
        )
    return rollouts
