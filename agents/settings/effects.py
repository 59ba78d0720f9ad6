"""Settings that have no effect together with the others, and the errors that refuse them.

A setting without effect is a user's mistake, so it is refused. Only values that differ from the default are
checked; values that turn something off, and the length of a run, are allowed. Saved settings are not checked
(``Config.from_saved``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent
    from textenv.agents.settings.base import Config
    from textenv.agents.settings.policy_gradient import PolicyGradientConfig

Idle = dict[str, str]
"""Setting -> reason why it has no effect, as the end of a sentence."""
FROM_EPISODES = "on an agent that learns from the episodes that it generates alone"
"""Why a data set has no effect on an agent that has no loss on one."""


def refuse(config: Config, found: Mapping[str, str]) -> None:
    """Refuse settings without effect.

    Raises:
        ValueError: naming the first of them, its value and the reason.
    """
    for name, why in found.items():
        raise ValueError(f"{name} has no effect {why}; got {name}={getattr(config, name)!r}")


def refuse_in(agent: Agent) -> None:
    """Refuse settings without effect in an agent's environment, data and model, unless they are saved ones.

    Raises:
        ValueError: see ``refuse``.
    """
    refuse(agent.config, agent.config.refused(agent.idle()))


def refuse_dataset(agent: Agent, why: str) -> None:
    """Refuse a data set that an online agent does not learn from, unless its settings are saved ones.

    Args:
        agent: the agent.
        why: the end of the sentence that begins "dataset has no effect".

    Raises:
        ValueError: if there is one.
    """
    if agent.dataset is not None and not agent.config.saved:
        raise ValueError(f"dataset has no effect {why}; got {len(agent.dataset)} rows")


def refuse_in_run(agent: Agent) -> None:
    """Refuse settings of evaluations and checkpoints that a run can't make, unless they are saved ones.

    Raises:
        ValueError: see ``refuse``.
    """
    config, found = agent.config, Idle()
    if agent.eval_envs is None:
        found |= config.changed("eval_every", because="without anything to evaluate on (eval_envs=)")
    if agent.run_dir is None:
        names = ("checkpoint_every", "keep_checkpoints")
        found |= config.changed(*names, because="without run_dir=, where checkpoints would be")
    refuse(config, config.refused(found))


def takes(function: Callable[..., Any], keyword: str) -> bool:
    """Whether a registered function uses a keyword: it is in its signature, or ``**kwargs`` is.

    >>> def estimator(rewards, mask, *, gamma=1.0, **_): ...
    >>> takes(estimator, "gamma"), takes(estimator, "gae_lambda")
    (True, False)
    """
    parameters = inspect.signature(function).parameters
    return keyword in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD and not name.startswith("_")
        for name, parameter in parameters.items()
    )


def unlike(config: Config, names: Iterable[str], made_with: Mapping[str, Any], because: str) -> Idle:
    """Settings that differ from those that a given policy was made with."""
    return {
        name: why
        for name, why in config.changed(*names, because=because).items()
        if getattr(config, name) != made_with[name]
    }


def idle_in_policy_gradient(config: PolicyGradientConfig) -> Idle:
    """Settings without effect among those shared by policy-gradient agents."""
    changed, found = config.changed, Idle()
    if not config.whiten_advantages:
        found |= changed("whiten_min_std", because="without whiten_advantages")
    if config.importance_correction == "none":
        found |= changed("importance_clip", because="without importance_correction")
    if not config.ptx_coef:
        found |= changed("ptx_batch_size", because="with ptx_coef=0")
    if config.ema_decay == 0:
        found |= {"ema_decay": "at 0, where the average is the weights"}
    if not config.kl_coef:
        names = ("kl_placement", "kl_controller", "kl_target", "kl_horizon")
        found |= changed(*names, because="with kl_coef=0")
    elif config.kl_controller == "fixed":
        found |= changed("kl_target", "kl_horizon", because="with kl_controller='fixed'")
    if config.epochs * config.minibatches == 1:
        # The ratio to the policy before the update is 1 there, whatever its bounds.
        why = "with one optimizer step an iteration (epochs=1, minibatches=1)"
        found |= changed("stop_at_kl", "clip_range_high", "dual_clip", because=why)
        if config.clip_range is not None and config.ratio_level == "token":
            found |= changed("clip_range", because=why)
    if config.clip_range is None:
        found |= changed("clip_range_high", "dual_clip", "ratio_level", because="without clip_range")
    return found


def idle_beside_kl(config: PolicyGradientConfig) -> Idle:
    """Settings of the KL penalty in the reward, where the environment already has a KL penalty."""
    if not config.kl_coef or config.kl_placement == "loss":
        return {}
    names = ("kl_coef", "kl_controller", "kl_target", "kl_horizon")
    return config.changed(*names, because="where the environment has a KL reward")


def unused_by(estimator: str, config: Config) -> Idle:
    """Settings that an advantage estimator does not use."""
    keywords = {"gamma": "gamma", "gae_lambda": "gae_lambda", "bootstrap_truncated": "final_values"}
    why = f"with the advantage estimator {estimator!r}, which does not use it"
    found = config.changed(*(field for field in keywords if hasattr(config, field)), because=why)
    if not found:  # the estimators need torch, which settings at their defaults do without
        return {}
    from textenv.agents.losses.advantages import get_advantage

    function = get_advantage(estimator)
    return {field: why for field in found if not takes(function, keywords[field])}
