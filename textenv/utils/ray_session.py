"""Ray, for rollouts and rewards in other processes: connecting to it and keeping actors. Imported late.

Actors are meant to be stateless: whatever a call needs travels with it (large things as references into
Ray's object store), so an actor that died is replaced by Ray and its calls are made again, each counted once.
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
"""The first version of Ray that can ask those who connect for a token."""
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray is for one machine, whatever the system, and listens on its loopback address."""
_TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray looks for the user's token."""


class ActorsLostError(RuntimeError):
    """An actor died more often than it may be replaced."""


def connect(address: str | None = None) -> Any:
    """The ``ray`` module, connected; a connection that is there already is used as it is.

    Args:
        address: of a cluster; None is that of the variable ``RAY_ADDRESS``, else a cluster of this process's
            own on this machine, without dashboard and usage statistics: it listens on 127.0.0.1 only, and
            asks for a token, which this process makes unless there is one.

    Raises:
        ImportError: without ray, or if it is too old to ask for a token; it names the extra.
        ConnectionError: if there is no cluster at ``address``.

    Warns:
        UserWarning: if the process had imported ray before, when it was too late to say where it listens.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # "auto" and "ray://..." name a cluster that is there; "local" is one of this process's own.
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
            f"ray must be {least} or newer, which can ask for a token, got {ray.__version__}: "
            "pip install 'textenv[ray]'"
        )
    if not ray.is_initialized():
        if own and late and os.environ.get(_LOOPBACK) != "0":
            warnings.warn(
                "ray was imported before textenv starts a cluster, which may therefore listen on all of this "
                f"machine's addresses; set {_LOOPBACK}=0 and RAY_AUTH_MODE=token before ray is imported",
                stacklevel=2,
            )
        ray.init(address=address, include_dashboard=False, logging_level=logging.WARNING)
    return ray


def _keep_to_this_machine() -> None:
    """Have a cluster that this process starts listen on 127.0.0.1, and ask for a token.

    Ray reads these variables when it is imported, and its processes inherit them. What the user has set
    counts.
    """
    os.environ.setdefault(_LOOPBACK, "0")
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    known = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(os.environ.get(name) for name in known) and not _TOKEN_FILE.expanduser().exists():
        # Otherwise Ray writes one into the user's home, where it stays.
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
