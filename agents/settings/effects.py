"""Settings that have no effect together with the others, and the errors that refuse them.

A setting without effect is a user's mistake, so it is refused. Only values that differ from the default are
checked; values that turn something off, and the length of a run, are allowed. Saved settings are not checked
(``Config.from_saved``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

Idle = dict[str, str]
"""Setting -> reason why it has no effect, as the end of a sentence."""


class Settings(Protocol):
    """A settings object, as ``textenv.agents.settings.base.Config`` is one."""

    def changed(self, *names: str, because: str) -> Idle:
        """Those of the settings that differ from their default, each with the reason."""


FROM_EPISODES = "on an agent that learns from the episodes that it generates alone"
"""Why a data set has no effect on an agent that has no loss on one."""


def refuse(config: Settings, found: Mapping[str, str]) -> None:
    """Refuse settings without effect.

    Raises:
        ValueError: naming the first of them, its value and the reason.
    """
    for name, why in found.items():
        raise ValueError(f"{name} has no effect {why}; got {name}={getattr(config, name)!r}")


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


def unlike(config: Settings, names: Iterable[str], made_with: Mapping[str, Any], because: str) -> Idle:
    """Settings that differ from those which a policy object given by the user was made with."""
    return {
        name: why
        for name, why in config.changed(*names, because=because).items()
        if getattr(config, name) != made_with[name]
    }


def unused_by(estimator: str, config: Settings) -> Idle:
    """Settings that an advantage estimator does not use."""
    keywords = {
        "gamma": "gamma",
        "gae_lambda": "gae_lambda",
        "discount": "discount",
        "bootstrap_truncated": "final_values",
    }
    why = f"with the advantage estimator {estimator!r}, which does not use it"
    found = config.changed(*(field for field in keywords if hasattr(config, field)), because=why)
    if not found:  # the estimators need torch, which settings at their defaults do without
        return {}
    from textenv.agents.losses.advantages import get_advantage

    function = get_advantage(estimator)
    return {field: why for field in found if not takes(function, keywords[field])}
