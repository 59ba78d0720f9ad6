"""The observation space of one row."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces


def observation_space(vocab_size: int, max_length: int) -> spaces.Dict:
    """Tokens, their mask and the start of the present turn.

    >>> observation_space(5, 3)["input_ids"]
    Box(0, 4, (3,), int64)
    """
    return spaces.Dict(
        {
            "input_ids": spaces.Box(0, vocab_size - 1, (max_length,), np.int64),
            "attention_mask": spaces.Box(0, 1, (max_length,), np.int8),
            "prompt_length": spaces.Discrete(max_length + 1),
        }
    )
