"""Checks that a task leaves the process alone: global random numbers and the network."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from textenv.tasks.audit.findings import Finding
from textenv.tasks.audit.subject import Subject
from textenv.tasks.audit.token_policies import TokenPolicy

NETWORK = (socket.AF_INET, socket.AF_INET6)
_EVENTS = ("socket.__new__", "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo")
_SEED = 2_718_281_828
_listeners: list[list[str]] = []
_hooked = False


def check_global_random(subject: Subject) -> list[Finding]:
    """Neither building nor playing moves the generators of `random`, numpy and torch."""
    before = random_states()
    try:
        start = _seeded()
        with subject.envs() as envs:
            built = _moved(start, random_states())
            middle = random_states()
            subject.collect(envs, TokenPolicy(envs.unwrapped, "random"))
            played = _moved(middle, random_states())
    finally:
        _restore(before)
    found = [
        Finding("global-random", "error", f"{what} changes the state of {', '.join(names)}; use {instead}")
        for what, names, instead in (
            ("building the task", built, "a generator of its own"),
            ("playing", played, "the rng of begin, or a generator of its own"),
        )
        if names
    ]
    return found or [Finding("global-random", "ok", "random, numpy.random and torch keep their states")]


def check_sockets(subject: Subject) -> list[Finding]:
    """Neither building nor playing opens a socket of the network."""
    with network_calls() as calls, subject.envs() as envs:
        subject.collect(envs, TokenPolicy(envs.unwrapped, "random"))
    if calls:
        distinct = list(dict.fromkeys(calls))
        text = f"{len(calls)} uses of the network, such as {'; '.join(distinct[:3])}"
        return [Finding("sockets", "error", text)]
    return [Finding("sockets", "ok", "no socket is opened")]


def _seeded() -> dict[str, Any]:
    """States that no task sets: one that seeds a generator would otherwise find its own state there."""
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.random.default_generator.manual_seed(_SEED)
    return random_states()


def random_states() -> dict[str, Any]:
    """Library -> the state of its global generator."""
    return {
        "random": random.getstate(),
        "numpy.random": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }


@contextmanager
def network_calls() -> Iterator[list[str]]:
    """The uses of the network within the block, in all threads; local (Unix) sockets do not count."""
    global _hooked
    if not _hooked:  # an audit hook cannot be removed, so there is one, which is idle outside of blocks
        sys.addaudithook(_hook)
        _hooked = True
    calls: list[str] = []
    _listeners.append(calls)
    try:
        yield calls
    finally:
        _listeners.remove(calls)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listeners or event not in _EVENTS:
        return
    about = ""
    if event == "socket.getaddrinfo":
        about = f"{arguments[0]}:{arguments[1]}"
    else:
        family = arguments[1] if event == "socket.__new__" else arguments[0].family
        if family not in NETWORK:
            return
        about = "" if event == "socket.__new__" else str(arguments[1])
    for calls in _listeners:
        calls.append(f"{event} {about}".strip())


def _moved(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before if _text(before[name]) != _text(after[name])]


def _text(state: Any) -> str:
    if isinstance(state, torch.Tensor):
        return str(state.numpy().tobytes())
    return str([part.tobytes() if isinstance(part, np.ndarray) else part for part in state])


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["random"])
    np.random.set_state(states["numpy.random"])
    torch.set_rng_state(states["torch"])
