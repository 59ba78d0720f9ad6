"""An agent's own state, and how it is saved, loaded and resumed; ``Agent`` has a method for each function."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Literal

from textenv import scoring as scorer
from textenv.agents.base.registry import get_agent
from textenv.agents.checkpointing import checkpoint as files
from textenv.agents.checkpointing.resume import find_checkpoint
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.checkpointing.state import RunIdentity, TrainingState
from textenv.agents.distributed import process_group
from textenv.modeling.saved_runs import verify


def training_state(agent: Any) -> TrainingState:
    """What every agent has: settings, counters, optimizer, schedule, reward terms, callbacks."""
    wrappers = [] if agent.envs is None else scorer.reward_wrappers(agent.envs)
    return TrainingState(
        agent=agent.registered_name(),
        config=agent.config.to_dict(),
        counters=agent.counters(),
        optimizer=agent.backend.optimizer_state(),
        schedule=agent.schedule.state_dict(),
        scaler=agent.backend.scaler.state_dict(),
        reward_terms=scorer.state_dict(wrappers),
        callbacks=agent.callbacks.state_dict(),
        values=dict(agent.state_values()),
        tensors=dict(agent.state_tensors()),
        stopped=agent.stopped,
        data=data_sizes(agent),
    )


def load_training_state(agent: Any, state: TrainingState) -> None:
    """Restore what ``training_state`` gave; the policy was loaded before."""
    agent.backend.load_optimizer_state(state.optimizer, state.scaler)
    agent.schedule.load_state_dict(state.schedule)
    agent.set_counters(state.counters)
    if agent.envs is not None:
        scorer.load_state_dict(scorer.reward_wrappers(agent.envs), state.reward_terms)
    agent.callbacks.load_state_dict(state.callbacks)
    agent.load_state(state.values, state.tensors)
    agent.policy.invalidate()


def data_sizes(agent: Any) -> dict[str, int]:
    """How much data an agent has, to notice a resume on other data."""
    sizes = {} if agent.dataset is None else {"rows of data": len(agent.dataset)}
    return sizes if agent.envs is None else sizes | {"prompts": len(agent.envs.unwrapped.prompts)}


def save(agent: Any, path: str | os.PathLike[str]) -> None:
    """Write an agent into a folder; every process calls it.

    Raises:
        RunFolderError: if it can't be written; what was at ``path`` is still there.
        FileExistsError: if ``path`` holds something else than an agent.
    """
    with process_group.collective("saving"), agent.backend.unsharded_state():
        if process_group.is_main():
            files.save_state(path, agent.training_state(), agent.save_policy)


def save_checkpoint(agent: Any, run_dir: Path) -> Path:
    """Write a checkpoint of this iteration into the folder of the run, and remove the oldest ones."""
    run, keep = RunFolder(run_dir), agent.config.keep_checkpoints
    with process_group.collective("saving a checkpoint"), agent.backend.unsharded_state():
        if process_group.is_main():
            files.save_checkpoint(run, agent.training_state(), agent.save_policy, keep=keep)
    return run.checkpoint_dir(agent.iteration)


def load(cls: type[Any], path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Rebuild an agent from the folder that ``save`` wrote, or from a checkpoint.

    Args:
        cls: the agent's class, or a base class of it.
        path: the folder.
        kwargs: of the constructor: ``envs``, ``dataset``, ``callbacks``, ...; ``config`` replaces the saved
            settings. Without ``callbacks`` the states of the saved callbacks are not used; those given
            continue from their saved states.

    Raises:
        ValueError: if the folder was written by another kind of agent.
        CorruptCheckpointError: if the folder is damaged.
    """
    verify(path)
    state = files.read_state(path)
    if "callbacks" not in kwargs:
        state.callbacks = []
    kind: Any = cls if vars(cls).get("name") == state.agent else get_agent(state.agent)
    if not issubclass(kind, cls):
        raise ValueError(f"{Path(path)} holds a {kind.__name__}, expected a {cls.__name__}")
    config = kwargs.pop("config", None) or kind.config_class.from_saved(state.config)
    agent = kind(kind.policy_class.load(path), config=config, **kwargs)
    state.callbacks = agent.callbacks.without_added(state.callbacks)
    with agent.backend.unsharded_state(write=True):
        agent.load_training_state(state)
    return agent


def restore(
    agent: Any, run_dir: str | os.PathLike[str], *, missing: Literal["error", "start"] = "error"
) -> Path | None:
    """Load the newest whole checkpoint of a run into an agent that was made as the run's was.

    Returns:
        The checkpoint; None if there was none.

    Raises:
        FileNotFoundError, RunFolderError, ValueError: see ``find_checkpoint``.

    Warns:
        UserWarning: if the run kept its best agent and this agent has no ``BestCheckpoint``.
    """
    config = agent.config
    own = RunIdentity(
        agent=agent.registered_name(), online=agent.online, config=config, data=data_sizes(agent)
    )
    found = find_checkpoint(run_dir, own, missing=missing, keep=config.keep_checkpoints)
    if found is not None:
        state = files.read_state(found)
        callbacks = agent.callbacks.without_added(state.callbacks)
        if len(callbacks) < len(state.callbacks):
            warnings.warn(
                "the run kept its best agent and this agent has no BestCheckpoint: "
                "the folder with the best agent does not change; "
                "pass callbacks=[BestCheckpoint()] to update it",
                stacklevel=3,
            )
        state.callbacks = callbacks
        with agent.backend.unsharded_state(write=True):
            agent.restore_policy(found)
            agent.load_training_state(state)
        agent.stopped = state.stopped
        files.restore_random_state(found)
    agent.resumed = True
    return found
