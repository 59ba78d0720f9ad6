"""Skip the last layer's output projection and MLP at positions whose hidden states are not needed.

After the last attention positions no longer interact, so prompt and padding positions can be skipped; this
saves about 75 % of that layer's work on them. Forward hooks on these modules gather the positions and scatter
the results; other positions keep their state from before the layer. Shape letters: B rows, L tokens, n
positions, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = ("mlp", "attn.c_proj", "self_attn.o_proj", "self_attn.dense", "attention.dense")
"""Names in transformers' architectures of a block's modules that process each position separately."""
_WORTHWHILE = 0.9
"""Largest fraction of positions for which gathering costs less than it saves."""


def position_wise_modules(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the last block's modules that can run at selected positions; () if there are none.

    Args:
        model: a causal LM.
        count: number of its blocks, from the config.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            last = module[-1]
            inside = {inner for inner, _ in last.named_modules()}
            return tuple(f"{name}.{count - 1}.{inner}" for inner in _NAMES if inner in inside)
    return ()


@contextmanager
def selected_positions(
    modules: Sequence[nn.Module], positions: Tensor, size: tuple[int, int]
) -> Iterator[None]:
    """Within the block these modules compute at selected positions only; elsewhere their output is 0.

    Args:
        modules: each takes one tensor (B, L, d) and processes each position separately.
        positions: (n,) int64, distinct, in 0..B L - 1.
        size: (B, L).

    Raises:
        ValueError: if a module has other inputs or outputs.

    Example:
        >>> layer, x = nn.Linear(3, 2), torch.randn(1, 4, 3)
        >>> with selected_positions([layer], torch.tensor([0, 2]), (1, 4)):
        ...     some = layer(x)
        >>> bool((some[0, [0, 2]] == layer(x)[0, [0, 2]]).all()), some[0, [1, 3]].tolist()
        (True, [[0.0, 0.0], [0.0, 0.0]])
    """
    count = size[0] * size[1]

    def gather(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs or len(args) != 1 or args[0].shape[:2] != size:
            raise ValueError(f"{type(module).__name__} takes more than one tensor (B, L, d)")
        return (args[0].flatten(0, 1).index_select(0, positions).unsqueeze(0),), kwargs

    def scatter(module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.shape[:2] != (1, len(positions)):
            raise ValueError(f"{type(module).__name__} does not return one tensor (B, L, d)")
        whole = output.new_zeros(count, *output.shape[2:])
        return whole.index_copy(0, positions, output[0]).unflatten(0, size)

    handles = [module.register_forward_pre_hook(gather, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(scatter) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_worthwhile(read: int, size: tuple[int, int]) -> bool:
    """Whether running at ``read`` of the positions (B, L) is cheaper than running at all of them."""
    return read <= _WORTHWHILE * size[0] * size[1]


def runs_under_checkpointing(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether gradient checkpointing will run these modules again in the backward pass, without hooks.

    Checkpointing runs a module again with everything inside it, so the modules' parents are checked, too.

    Args:
        model: contains the modules.
        names: of the modules, as in ``named_modules``.
    """
    paths = {"", *(path for name in names for path in accumulate(name.split("."), "{}.{}".format))}
    return torch.is_grad_enabled() and any(
        getattr(model.get_submodule(path), "gradient_checkpointing", False) for path in paths
    )
