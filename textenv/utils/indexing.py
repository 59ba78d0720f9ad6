"""Row indices of batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textenv.utils.names import shown


def row_index(index: Tensor | Sequence[int] | slice, rows: int) -> Tensor:
    """Row indices (n,) int64 from integers, a boolean mask or a slice.

    Raises:
        ValueError: if a boolean mask does not have one value per row.
        TypeError: if it is not a list of integers.

    >>> row_index(slice(None, None, -1), 3), row_index([True, False, True], 3)
    (tensor([2, 1, 0]), tensor([0, 2]))
    """
    if isinstance(index, slice):
        return torch.tensor(range(rows)[index], dtype=torch.int64)
    try:
        index = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"row indices must be a list of integers, got {shown(index)}") from error
    if index.dim() != 1:
        raise TypeError(f"row indices must be a list of integers, got shape {tuple(index.shape)}")
    if index.dtype == torch.bool:
        if index.shape != (rows,):
            raise ValueError(f"a boolean mask of rows must have shape ({rows},), got {tuple(index.shape)}")
        return index.nonzero().squeeze(-1)
    if index.numel() and index.is_floating_point():
        raise TypeError(f"row indices must be integers, got {index.dtype}")
    return index.to(torch.int64)
