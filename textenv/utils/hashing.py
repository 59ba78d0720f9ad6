"""Counter-based random numbers: each is a hash of its key and depends on nothing else.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), in wrapping int64 tensor arithmetic for any device, and in numpy, which is several times faster
on the few numbers of an environment step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift of an int64 tensor."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's bijective finaliser: (...,) int64 -> (...,) int64.

    >>> int(mix64(torch.tensor(0)))
    0
    >>> len({int(v) for v in mix64(torch.arange(1000))})
    1000
    """
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def mix64_array(x: np.ndarray) -> np.ndarray:
    """``mix64`` in numpy: (...,) uint64 -> (...,) uint64.

    >>> numbers = torch.arange(-3, 3)
    >>> bool((mix64_array(numbers.numpy().view(np.uint64)).view(np.int64) == mix64(numbers).numpy()).all())
    True
    """
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_key(*parts: Tensor | int) -> Tensor:
    """Hash integers (broadcast against each other) into one int64 key.

    Args:
        parts: at least one int64 tensor or Python int; the order matters.

    >>> bool(hash_key(torch.tensor(1), 2) == hash_key(torch.tensor(2), 1))
    False
    """
    # Numbers are created on the device: a copy from the host would make it wait.
    device = next((part.device for part in parts if isinstance(part, Tensor)), torch.device("cpu"))
    key: Tensor = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        if isinstance(part, Tensor):
            if key.device != part.device:
                key = key.to(part.device)
            key = mix64((key + _GOLDEN) ^ mix64(part.to(torch.int64) + _GOLDEN))
        else:
            number = torch.full((), part, dtype=torch.int64, device=key.device)
            key = mix64((key + _GOLDEN) ^ mix64(number + _GOLDEN))
    return key


def hash_key_array(*parts: np.ndarray) -> np.ndarray:
    """``hash_key`` in numpy: integer arrays (...,) -> (...,) uint64, the same bits.

    >>> a, b = np.arange(5), np.arange(-5, 0)
    >>> expected = hash_key(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    >>> bool((hash_key_array(a, b).view(np.int64) == expected).all())
    True
    """
    golden = np.uint64(_GOLDEN % 2**64)
    key: np.ndarray = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = mix64_array((key + golden) ^ mix64_array(part.astype(np.uint64) + golden))
    return np.asarray(key)


def uniform(key: Tensor) -> Tensor:
    """Map int64 keys to float64 uniforms in (0, 1), 53 bits each: (...,) -> (...,).

    >>> u = uniform(hash_key(torch.arange(10_000), 7))
    >>> bool((u > 0).all() and (u < 1).all() and abs(u.mean() - 0.5) < 0.01)
    True
    """
    return (_shift_right(key, 11).to(torch.float64) + 0.5) * (2.0**-53)
