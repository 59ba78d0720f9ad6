"""Open the loggers of a run, and write down what the run is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.distributed import process_group
from textenv.agents.distributed.devices import device_of
from textenv.agents.loggers.registry import Loggers, make_loggers


def open_loggers(agent: Any, specs: Sequence[Any], total: int) -> Loggers:
    """The loggers of an agent's run, in the main process; none in other processes.

    ``run.json`` is written unless it is there.

    Args:
        agent: an agent before its first iteration, or resumed.
        specs: names or objects, see ``textenv.agents.loggers.registry.make_loggers``.
        total: iterations of the whole run.
    """
    if not process_group.is_main():
        return Loggers()
    resume = agent.iteration if agent.iteration or agent.resumed else None
    name, where = type(agent).__name__, device_of(agent)
    known: dict[str, Any] = {"total_steps": total, "resume_step": resume, "name": name, "device": where}
    loggers = make_loggers(specs, agent.run_dir, agent.config, **known)
    if agent.run_dir is not None and not RunFolder(agent.run_dir).info_path.exists():
        RunFolder(agent.run_dir).write_info(agent.config, agent=name, device=where)
    return loggers
