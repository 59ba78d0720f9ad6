"""Ray, for rollouts and rewards in other processes: connecting to it and keeping actors. Imported late.

Actors are meant to be stateless: whatever a call needs travels with it (large things as references into
Ray's object store), so an actor that died is replaced by Ray and its calls are made again, each counted once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any


class ActorsLostError(RuntimeError):
    """An actor died more often than it may be replaced."""


def connect(address: str | None = None) -> Any:
    """The ``ray`` module, connected; a connection that is there already is used as it is.

    Args:
        address: of a cluster; None is that of the variable ``RAY_ADDRESS``, else a cluster of this process's
            own on this machine, without dashboard and usage statistics.

    Raises:
        ImportError: without ray; it names the extra.
        ConnectionError: if there is no cluster at ``address``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("actors need ray: pip install 'textenv[ray]'") from error
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    return ray


def start_actors(
    ray: Any,
    actor: type,
    count: int,
    *,
    arguments: Sequence[Any] = (),
    num_cpus: float,
    num_gpus: float,
    max_restarts: int,
    timeout: float,
) -> list[Any]:
    """Start ``count`` actors and wait until all of them answer.

    Args:
        ray: what ``connect`` gave.
        actor: their class; it has ``pid()``.
        count: how many.
        arguments: of its constructor.
        num_cpus: CPUs that Ray sets aside for each.
        num_gpus: GPUs that Ray sets aside for each.
        max_restarts: how often each may be replaced when it dies.
        timeout: seconds to wait for them.

    Raises:
        TimeoutError: if the cluster has no room for them.
    """
    remote = ray.remote(actor).options(
        num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=max_restarts, max_task_retries=-1
    )
    actors = [remote.remote(*arguments) for _ in range(count)]
    try:
        ray.get([one.pid.remote() for one in actors], timeout=timeout)
    except ray.exceptions.GetTimeoutError as error:
        stop_actors(ray, actors)
        raise TimeoutError(
            f"{count} actors with num_cpus={num_cpus} and num_gpus={num_gpus} each did not start in "
            f"{timeout:g} s; the cluster has {_room(ray)}"
        ) from error
    return actors


def stop_actors(ray: Any, actors: Sequence[Any]) -> None:
    """Kill actors for good; calls that they have not answered are forgotten."""
    if ray.is_initialized():
        for one in actors:
            ray.kill(one)


def gather(ray: Any, calls: Sequence[Any]) -> list[Any]:
    """The results of calls, in order; calls of actors that were replaced meanwhile are made again by Ray.

    Raises:
        ActorsLostError: if an actor died more often than ``max_restarts``.
        Exception: whatever a call raised.
    """
    try:
        return ray.get(list(calls))
    except ray.exceptions.RayActorError as error:
        raise ActorsLostError(
            f"an actor died more often than max_restarts allows, look for the cause (memory?): {error}"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, Exception):
            raise
        raise error.cause from error


def _room(ray: Any) -> str:
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0.0):g} CPUs and {found.get('GPU', 0.0):g} GPUs in all"
