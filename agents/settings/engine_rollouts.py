"""Settings of rollouts by a generation engine (``textenv.agents.rollouts.engine_collector``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class EngineRollouts(Config):
    """Settings of rollouts by a generation engine, an online agent's argument ``rollouts``.

        PPO(model, envs=envs, config=PPOConfig(importance_correction="token"), rollouts=EngineRollouts())

    The engine writes whole responses to an iteration's prompts; the environment then reads them token by
    token, and remains the judge of endings, tickets and rewards.
    """

    engine: Literal["vllm"] = "vllm"
    """Which engine is started; ``EngineCollector`` takes any other as an object."""
    engine_kwargs: dict[str, Any] | None = None
    """Further arguments of the engine, for vLLM those of vllm.LLM such as gpu_memory_utilization."""
    sleep: bool = False
    """Let the engine give its memory back while the agent learns."""
    weights_dir: str | None = None
    """Folder under which the weights are handed over, /dev/shm for one in memory; None is the system's."""

    @property
    def ahead(self) -> int:
        """Iterations that are played ahead: none, the engine writes with the current weights."""
        return 0
