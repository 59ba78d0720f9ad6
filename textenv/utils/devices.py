"""Moving numbers to a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """CPU values as a tensor on ``device``, without waiting; the caller must not change them afterwards."""
    return torch.as_tensor(values).to(device, non_blocking=True)
