"""Names of the autoreset modes: when a new episode starts in a row whose episode ended."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode

from textenv.utils.checks import check_choice

AUTORESET_MODES = {
    "same_step": AutoresetMode.SAME_STEP,
    "next_step": AutoresetMode.NEXT_STEP,
    "disabled": AutoresetMode.DISABLED,
}


def autoreset_name(value: Any) -> str:
    """The name of a mode, given by name or as a member of Gymnasium's enumeration.

    Raises:
        ValueError: if it is neither; the error lists the names.

    >>> autoreset_name("disabled"), autoreset_name(AutoresetMode.NEXT_STEP)
    ('disabled', 'next_step')
    """
    for name, mode in AUTORESET_MODES.items():
        if value is mode:
            return name
    check_choice("autoreset", value, AUTORESET_MODES)
    return str(value)
