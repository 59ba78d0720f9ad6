"""The global random generators of Python, numpy and torch, as tensors and JSON values.

Agents draw from seeds and counters of their own; this is for what users add (rewards, callbacks, models).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The generators' states now, for ``set_random_state``.

    >>> state = random_state()
    >>> drawn = random.random(), np.random.rand(), torch.rand(1).item()
    >>> set_random_state(*state)
    >>> drawn == (random.random(), np.random.rand(), torch.rand(1).item())
    True
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(legacy[1].astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states = torch.cuda.get_rng_state_all()
        tensors |= {f"cuda/{i}": state for i, state in enumerate(states)}
    values = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {"generator": legacy[0], "position": legacy[2], "has_gauss": legacy[3], "gauss": legacy[4]},
    }
    return tensors, values


def set_random_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Restore what ``random_state`` gave; the states of GPUs that are not there are left out."""
    own, numpy = values["python"], values["numpy"]
    random.setstate((own["version"], tuple(tensors["python"].tolist()), own["gauss"]))
    words = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((numpy["generator"], words, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
    torch.set_rng_state(tensors["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda/{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda/{i}"], i)
