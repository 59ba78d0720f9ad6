"""Choose the device of a run: the requested one, else this process's GPU, else the CPU."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from textenv.agents.distributed import process_group


def default_device() -> str:
    """The GPU of this process if the machine has one, else "cpu"."""
    if process_group.world_size() > 1:
        return str(process_group.device())
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_kwargs(device: str | None) -> dict[str, str]:
    """The argument ``device`` for a policy or an environment; empty for the CPU, their default.

    Args:
        device: what was asked for; None is ``default_device()``.
    """
    found = device or default_device()
    return {} if found == "cpu" else {"device": found}


def on_device(
    agent: type,
    model: Any,
    env_kwargs: Mapping[str, Any] | None,
    policy_kwargs: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of environments and policy, with the same device for both if only one or none is given.

    Args:
        agent: the agent's class; where it takes no ``policy_kwargs`` nothing is added.
        model: what the policy is made of; a module stays where its parameters are.
        env_kwargs: arguments of the environments.
        policy_kwargs: arguments of the policy.

    Example:
        >>> from textenv.agents.ppo import PPO
        >>> on_device(PPO, "gpt2", None, {"device": "cuda"})
        ({'device': 'cuda'}, {'device': 'cuda'})
    """
    env, policy = dict(env_kwargs or {}), dict(policy_kwargs or {})
    if "policy_kwargs" not in inspect.signature(agent.__init__).parameters:  # type: ignore[misc]
        return env, policy
    if isinstance(model, nn.Module) and policy.get("device") is None:
        first = next(model.parameters(), None)
        return {**device_kwargs("cpu" if first is None else str(first.device)), **env}, policy
    given = policy.get("device") or env.get("device")
    shared = device_kwargs(None if given is None else str(given))
    own = {name: value for name, value in policy.items() if name != "device" or value is not None}
    return {**shared, **env}, {**shared, **own}


def device_of(agent: Any) -> str | None:
    """The device of an agent's policy with the name of its hardware; None where the policy has none."""
    found = getattr(getattr(agent, "policy", None), "device", None)
    return None if found is None else describe(found)


def describe(device: torch.device | str) -> str:
    """A device with the name of its hardware, in a few words.

    >>> describe("cpu")
    'cpu'
    """
    found = torch.device(device)
    return f"{found} ({torch.cuda.get_device_name(found)})" if found.type == "cuda" else str(found)
