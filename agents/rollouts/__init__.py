"""Rollouts by others than the agent's own process, its argument ``rollouts``.

``RayRollouts`` lets Ray actors play, ``EngineRollouts`` a generation engine write.
"""
