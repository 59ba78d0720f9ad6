"""The ``options`` of ``reset``: which rows to reset, or which episodes to play."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from textenv.utils.checks import as_row_mask, check_choice
from textenv.utils.names import shown

RESET_OPTIONS = ("episodes", "first_ticket", "rank", "world_size", "reset_mask")


def split_options(options: Any, num_envs: int) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The (N,) bool mask of the rows to reset, None for all, and the options of the episode queue.

    Raises:
        TypeError: if the options are not a mapping.
        ValueError: if an option is unknown, the mask does not fit, or two options exclude each other.

    >>> split_options({"episodes": 3}, 2)
    (None, {'episodes': 3})
    """
    if options is None:
        return None, {}
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a dict, got {shown(options)}")
    for name in options:
        check_choice("options", name, RESET_OPTIONS)
    rest = dict(options)
    mask = as_row_mask(rest.pop("reset_mask", None), num_envs)
    if rest and "episodes" not in rest:
        raise ValueError(f"options {sorted(rest)} need options['episodes']")
    if rest and mask is not None:
        raise ValueError("options['episodes'] starts all rows and can't be combined with 'reset_mask'")
    return mask, rest
