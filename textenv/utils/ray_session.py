"""Connect to Ray and manage actors, for rollouts and rewards in other processes.

Actors are stateless: each call passes all that it needs (large objects as references into Ray's object
store). So Ray can replace an actor that died and repeat its calls. ``ray`` is imported on first use.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LEAST_VERSION = (2, 52)
"""The first version of Ray with token authentication."""
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With the value 0 Ray starts a single-machine cluster that listens on the loopback address only."""
_TOKEN_FILE = Path("~/.ray/auth_token")
"""File in which Ray looks for the user's token."""


class ActorsLostError(RuntimeError):
    """An actor died more than ``max_restarts`` times."""


def connect(address: str | None = None) -> Any:
    """Connect to Ray and return the ``ray`` module. An existing connection is used.

    Args:
        address: address of a cluster. None = the environment variable ``RAY_ADDRESS``, or, if it is not set,
            a new cluster on this machine without dashboard and usage statistics. The new cluster listens on
            127.0.0.1 only and requires a token, which is generated unless the user has one.

    Raises:
        ImportError: if ray is not installed or too old; the message names the extra.
        ConnectionError: if there is no cluster at ``address``.

    Warns:
        UserWarning: if ray was imported before, so that the new cluster may listen on all addresses.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # "auto" and "ray://..." name an existing cluster; "local" starts a new one.
    own = (address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    late = "ray" in sys.modules
    if own and not late:
        _keep_to_this_machine()
    try:
        import ray
    except ImportError as error:
        raise ImportError("actors need ray: pip install 'textenv[ray]'") from error
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise ImportError(
            f"ray must be version {least} or newer (token authentication), got {ray.__version__}: "
            "pip install 'textenv[ray]'"
        )
    if not ray.is_initialized():
        if own and late and os.environ.get(_LOOPBACK) != "0":
            warnings.warn(
                "ray was imported before textenv started a cluster, so the cluster may listen on all of this "
                f"machine's addresses; set {_LOOPBACK}=0 and RAY_AUTH_MODE=token before ray is imported",
                stacklevel=2,
            )
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    return ray


def _keep_to_this_machine() -> None:
    """Make a new cluster listen on 127.0.0.1 only and require a token, with environment variables.

    Ray reads the variables when it is imported, and its processes inherit them. Variables that the user has
    set are not changed.
    """
    os.environ.setdefault(_LOOPBACK, "0")
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    known = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(os.environ.get(name) for name in known) and not _TOKEN_FILE.expanduser().exists():
        # Otherwise Ray would write a token file into the user's home folder.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


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
        ray: the module that ``connect`` returned.
        actor: class of the actors; it has a method ``pid()``.
        count: number of actors.
        arguments: arguments of the constructor.
        num_cpus: CPUs that Ray reserves for each actor.
        num_gpus: GPUs that Ray reserves for each actor.
        max_restarts: how often Ray replaces an actor that died.
        timeout: maximum waiting time in seconds.

    Returns:
        ``count`` actor handles.

    Raises:
        TimeoutError: if the actors do not start in time, for example because the cluster has too few CPUs.
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
    """Kill actors without replacement; their unfinished calls are dropped."""
    if ray.is_initialized():
        for one in actors:
            ray.kill(one)


def gather(ray: Any, calls: Sequence[Any]) -> list[Any]:
    """Wait for calls and return their results in order. Ray repeats the calls of actors that it replaced.

    Raises:
        ActorsLostError: if an actor died more than ``max_restarts`` times.
        Exception: the exception of a call that failed.
    """
    try:
        return ray.get(list(calls))
    except ray.exceptions.RayActorError as error:
        raise ActorsLostError(
            f"an actor died more than max_restarts times (out of memory?): {error}"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, Exception):
            raise
        raise error.cause from error


def _room(ray: Any) -> str:
    found = ray.cluster_resources()
    return f"{found.get('CPU', 0.0):g} CPUs and {found.get('GPU', 0.0):g} GPUs in all"
