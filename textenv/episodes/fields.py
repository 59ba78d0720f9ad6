"""The fields of an episode batch by name: their shapes and usual dtypes. Shape letters: B episodes, L tokens.

Checks and file formats work on a mapping of field name -> value, so they do not depend on ``EpisodeBatch``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

PER_ROW = ("prompt_lengths", "final_values", "terminated", "truncated", "episode_id", "prompt_index")
"""Fields of shape (B,)."""
PER_TOKEN = ("input_ids", "attention_mask", "action_mask", "log_probs", "values", "rewards")
"""Fields of shape (B, L)."""
REQUIRED = ("input_ids", "attention_mask", "prompt_lengths", "action_mask")
"""Fields without a default."""
MAPPINGS = ("reward_terms", "extras", "sampling")
"""Fields that are dictionaries."""
IDS = ("input_ids", "prompt_lengths", "episode_id", "prompt_index")
"""Fields that hold integers."""
FLAGS = ("attention_mask", "action_mask", "terminated", "truncated")
"""Fields that hold bools."""
TERM_PREFIX = "reward_terms/"
"""Start of the name of a reward term where fields and terms share one mapping."""


def is_per_token(name: str) -> bool:
    """Whether a field (or ``reward_terms/NAME``) has shape (B, L).

    >>> is_per_token("rewards"), is_per_token("reward_terms/length"), is_per_token("terminated")
    (True, True, False)
    """
    return name in PER_TOKEN or name.startswith(TERM_PREFIX)


def usual_dtype(name: str) -> str:
    """Name of the dtype that a field has unless another one is recorded: int64, bool or float32."""
    return "int64" if name in IDS else "bool" if name in FLAGS else "float32"


def named_tensors(fields: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the fields with its name; reward terms as ``reward_terms/NAME``."""
    for name, value in fields.items():
        if isinstance(value, Tensor):
            yield name, value
    for name, value in fields["reward_terms"].items():
        yield TERM_PREFIX + name, value
