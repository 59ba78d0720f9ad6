"""A make-believe accelerator: tensors that say they are elsewhere; every wait of the host is counted.

Their numbers are in ordinary memory, so the code that would run on a GPU runs as it is, and what would make
the host wait there (reading a number, copying to the host, a copy from pageable memory that is not
``non_blocking``, results whose size depends on the data) is seen on any machine.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
"""What the tensors say; under ``Accelerator`` nothing else may be on this device."""
_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}
_SIZED_BY_DATA = {_aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default}


class Elsewhere(Tensor):
    """A tensor on the accelerator."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Elsewhere:
        found = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device=ELSEWHERE
        )
        found.raw = raw
        return found

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on an accelerator that is not there: use `with Accelerator()`")


class _Lists(TorchFunctionMode):
    """Lists of numbers become tensors on the host first; of a "meta" tensor torch would forget them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") == ELSEWHERE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(ELSEWHERE)
        if func is Tensor.__getitem__ and isinstance(args[0], Elsewhere):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            at = tuple(torch.tensor(part) if isinstance(part, list) else part for part in index)
            return func(args[0], at)
        return func(*args, **kwargs)


class Accelerator(TorchDispatchMode):
    """Within the block there is one; ``waits`` names every operation for which the host waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._lists = _Lists()

    def __enter__(self) -> Self:
        self._lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def move(self, model: nn.Module) -> nn.Module:
        """Put a module's weights there, in place."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    moved = Elsewhere(parameter.detach())
                    module._parameters[name] = nn.Parameter(moved, requires_grad=False)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else Elsewhere(buffer)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        return model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        there = [leaf for leaf in leaves if isinstance(leaf, Elsewhere)]
        here = [leaf for leaf in leaves if not isinstance(leaf, Elsewhere) and leaf.dim()]
        goal = kwargs.get("device")
        if goal is not None:
            kwargs["device"] = torch.device("cpu")
        to_there = goal == ELSEWHERE if goal is not None else bool(there)
        self._count(func, args, kwargs, there, here, leaves, to_there)
        by_id = {id(leaf.raw): leaf for leaf in there}
        bare_args, bare_kwargs = tree_map(lambda x: x.raw if isinstance(x, Elsewhere) else x, (args, kwargs))
        found = func(*bare_args, **bare_kwargs)

        def outside(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in by_id:
                return by_id[id(value)]
            return Elsewhere(value) if to_there else value

        if func is _aten.copy_.default:
            return args[0]
        return tree_map(outside, found)

    def _count(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        there: list[Elsewhere],
        here: list[Tensor],
        leaves: list[Tensor],
        to_there: bool,
    ) -> None:
        """Note a wait, and refuse what a real device would refuse."""
        if func is _aten._to_copy.default:
            if (bool(there) != to_there) and not (to_there and kwargs.get("non_blocking")):
                self.waits.append("to the device" if to_there else "to the host")
        elif func is _aten.copy_.default:
            crossing = isinstance(args[0], Elsewhere) != isinstance(args[1], Elsewhere)
            blocking = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
            if crossing and args[1].dim() and (blocking or isinstance(args[1], Elsewhere)):
                self.waits.append("copy")
        elif there and (func in _READS or func in _SIZED_BY_DATA):
            self.waits.append(str(func))
        elif there and func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.waits.append(f"{func} by a mask")
            elif any(not isinstance(index, Elsewhere) for index in indices):
                self.waits.append(f"{func} by an index of the host's")
        elif there and here:
            raise RuntimeError(f"{func} got tensors on the host and on the device")
