"""AdamW whose moments are 8-bit numbers, with a state that checkpoints can hold; needs bitsandbytes."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch


class AdamW8bit(bitsandbytes.optim.AdamW8bit):
    """bitsandbytes' AdamW8bit: a fourth of AdamW's memory for moments, dynamic quantisation in blocks.

    On CUDA, and on the CPU (slower than the fused AdamW there, for trying things out).
    """

    def state_dict(self) -> dict[str, Any]:
        """The state in torch's format: tensors by parameter that do not share memory."""
        state = torch.optim.Optimizer.state_dict(self)
        state["state"] = {
            index: {name: _own(name, value) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return state


def _own(name: str, value: Any) -> Any:
    """Copy the quantization tables (256 values), which all parameters' states share."""
    return value.clone() if name.startswith("qmap") else value
