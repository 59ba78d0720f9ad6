"""Random permutations of a range in constant memory: each position is computed separately."""

from __future__ import annotations

import numpy as np

from textenv.utils.hashing import hash_key_array

_ROUNDS = 6
_SMALL = 256
"""Up to this size items are sorted: a Feistel network on few bits has too few different permutations."""


def permute(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """The image of each position under a keyed random permutation of range(size).

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
    return _sorted(position, size, key) if size <= _SMALL else _feistel(position, size, key)


def _sorted(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Items in the order of their hashes (the "prefix cipher" of Black and Rogaway 2002)."""
    keys, which = np.unique(key, return_inverse=True)
    order = np.argsort(hash_key_array(keys[:, None], np.arange(size)), axis=1, kind="stable")
    return order[which, position]


def _feistel(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """A balanced Feistel network on the next even number of bits, repeated until the result is in range.

    Constant memory; Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    half = np.uint64((int(size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    value = position.astype(np.uint64)
    todo = np.ones(len(value), dtype=bool)
    while todo.any():
        left, right, own = value[todo] >> half, value[todo] & mask, key[todo]
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (hash_key_array(own + np.uint64(round_), right) & mask)
        value[todo] = (left << half) | right
        todo = value >= np.uint64(size)
    return value.astype(np.int64)
