"""A random order of any range without storing it: the place of one item costs no more than itself."""

from __future__ import annotations

import numpy as np

from textenv.hashing import mix64_array

_ROUNDS = 4


def permute(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Where a keyed random permutation of range(size) puts each position, in constant memory.

    A balanced Feistel network on the next even number of bits, walked along its cycles until the result is
    in range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        position: (n,) integers in [0, size).
        size: length of the permuted range.
        key: (n,) uint64, one permutation per key.

    Returns:
        (n,) int64 in [0, size).

    Example:
        >>> sorted(permute(np.arange(20), 20, np.zeros(20, np.uint64)).tolist()) == list(range(20))
        True
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = position.astype(np.uint64)
    todo = np.ones(len(value), dtype=bool)
    while todo.any():
        left, right, k = value[todo] >> half, value[todo] & mask, key[todo]
        for round_ in range(_ROUNDS):
            with np.errstate(over="ignore"):
                mixed = mix64_array(
                    k + np.uint64(round_ + 1) * np.uint64(0x9E3779B97F4A7C15)
                    ^ mix64_array(right + np.uint64(1))
                )
            left, right = right, left ^ (mixed & mask)
        value[todo] = (left << half) | right
        todo = value >= np.uint64(size)
    return value.astype(np.int64)
