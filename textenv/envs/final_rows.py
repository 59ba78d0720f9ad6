"""`final_obs` and `final_info`: the ended episodes in same-step mode, whose rows hold new episodes."""

from __future__ import annotations

from typing import Any

import numpy as np


def final_entries(observation: dict[str, Any], info: dict[str, Any], ended: Any) -> dict[str, Any]:
    """The four entries of info, computed before new episodes start in the rows.

    With numpy arrays they have the form of Gymnasium's vector environments: ``final_obs`` is an (N,) object
    array of single observations, None in other rows, and ``final_info`` has a mask for every key. With
    tensors both stay batched, (N, ...), and are valid where ``_final_obs``: ``final_obs["input_ids"][i]``.

    Args:
        observation: of all N rows; not copied.
        info: of all N rows, with "episode" if there are statistics; not copied.
        ended: (N,) bool, the rows whose episode ended; a numpy array or a tensor, like all other values.

    >>> ended = np.array([False, True])
    >>> entries = final_entries({"prompt_length": np.array([3, 4])}, {"episode_id": np.array([0, 7])}, ended)
    >>> entries["final_obs"].tolist(), entries["final_info"]["episode_id"].tolist()
    ([None, {'prompt_length': np.int64(4)}], [0, 7])
    """
    if isinstance(ended, np.ndarray):
        info = _masked(info, ended)
        final_obs: Any = np.full(len(ended), None, dtype=object)
        for row in np.flatnonzero(ended):
            final_obs[row] = {name: value[row].copy() for name, value in observation.items()}
    else:
        final_obs = observation
    return {"final_info": info, "_final_info": ended, "final_obs": final_obs, "_final_obs": ended}


def final_row(final_obs: Any, row: int) -> dict[str, Any]:
    """The observation of one row that ended, from either form of ``final_obs``."""
    if isinstance(final_obs, np.ndarray):
        observation: dict[str, Any] = final_obs[row]
        return observation
    return {name: value[row] for name, value in final_obs.items()}


def _masked(info: dict[str, Any], ended: np.ndarray) -> dict[str, Any]:
    """Zeros in rows that continue, and a mask for every key; arrays are changed in place."""
    masked: dict[str, Any] = {}
    for name, value in info.items():
        if name.startswith("_"):
            continue
        if isinstance(value, dict):
            masked[name] = _masked(value, ended)
        else:
            value[~ended] = 0
            masked[name] = value
        masked[f"_{name}"] = ended.copy()
    return masked
