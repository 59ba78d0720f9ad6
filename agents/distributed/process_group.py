"""Communication between processes: a few primitives, each of which does nothing in a single process.

``accelerate launch`` (or ``torchrun``) starts W processes that run the same script. They hold the same batch
and the same weights and take the same decisions. Generation, scoring, forward and backward passes are divided
by rows (``agents.distributed.data_parallel``). Tensors of the model are sent by accelerate's backend (NCCL
between GPUs), everything else through host memory by gloo.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypedDict, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

TIMEOUT = timedelta(hours=6)
"""Timeout of a collective. It is long, because other processes may generate longer responses."""
_BUCKET = 2**25
"""Elements of one reduction."""
_host: Any = None


class PeerError(RuntimeError):
    """Another process failed; the message names it and its error."""


def start() -> None:
    """Join the processes that a launcher started, if one did; the first agent of a process calls this."""
    global _host
    if _host is not None or not dist.is_available():
        return
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        atexit.register(_stop)
    _host = dist.new_group(backend="gloo", timeout=TIMEOUT)
    if not is_main():
        warnings.simplefilter("ignore", UserWarning)  # process 0 shows the same warnings


def _stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """W, the number of processes."""
    return dist.get_world_size() if _host is not None else 1


def rank() -> int:
    """Rank of this process, 0 <= r < W."""
    return dist.get_rank() if _host is not None else 0


class Place(TypedDict):
    """Rank and world size of this process."""

    rank: int
    """r, 0 <= r < W."""
    world_size: int
    """W."""


def place() -> Place:
    """Rank and world size, as ``textenv.rollout.collect`` takes them."""
    return Place(rank=rank(), world_size=world_size())


def is_main() -> bool:
    """Whether this process is the one that logs and writes: process 0."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        gather(None)


def device() -> torch.device:
    """Device of this process: its own GPU if there is one, else the CPU."""
    if torch.cuda.is_available() and world_size() > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_host)
    return values


def broadcast(value: T) -> T:
    """Process 0's value."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_host)
    return box[0]


def first_not_none(value: T | None) -> T | None:
    """The first value that is not None, in the order of the processes; None if no process has one."""
    return next((found for found in gather(value) if found is not None), None)


def all_reduce_sum(*numbers: float) -> list[float]:
    """Sums over the processes, bitwise equal in all of them."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums, group=_host)
    return sums.tolist()


def all_reduce_max(*numbers: float) -> list[float]:
    """Maxima over the processes."""
    if world_size() == 1:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=_host)
    return values.tolist()


@contextmanager
def collective(what: str) -> Iterator[None]:
    """A block that each process runs on its own. If one process fails in it, all raise, so none waits.

    Raises:
        PeerError: at the end of the block, if another process failed in it.
    """
    if world_size() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        gather(f"{type(error).__name__}: {error}")
        raise
    for number, said in enumerate(gather(None)):
        if said is not None:
            raise PeerError(f"{what} failed in process {number}: {said}")


@torch.no_grad()
def all_reduce_gradients(parameters: Sequence[nn.Parameter], bad: bool = False) -> bool:
    """Sum the gradients over the processes, in place.

    A missing gradient (of an expert that got no tokens in one process) counts as zero.
    Gradients of sharded parameters were summed in the backward pass and are left alone.

    Args:
        parameters: the same in every process, in the same order.
        bad: whether this process found an error, such as a loss that is not finite.

    Returns:
        Whether any process did; then the gradients are as they were.
    """
    if world_size() == 1:
        return bad
    own = [p for p in parameters if not is_sharded(p)]
    flags = torch.tensor([bad, *(p.grad is not None for p in own)], dtype=torch.uint8)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_host)
    if flags[0]:
        return True
    used = [p for p, flag in zip(own, flags[1:].tolist(), strict=True) if flag]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    all_reduce_tensors([p.grad for p in used if p.grad is not None])
    return False


def all_reduce_tensors(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over the processes, in place, in flat buckets of one type each."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for tensor in [*tensors, None]:
        if bucket and (tensor is None or size + tensor.numel() > _BUCKET or tensor.dtype != bucket[0].dtype):
            flat = torch.cat([part.reshape(-1) for part in bucket])
            dist.all_reduce(flat)
            for part, summed in zip(bucket, flat.split([part.numel() for part in bucket]), strict=True):
                part.copy_(summed.view_as(part))
            bucket, size = [], 0
        if tensor is not None:
            bucket.append(tensor)
            size += tensor.numel()


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Give every process process 0's parameters and buffers."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a shard of the tensor."""
    if world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_tensor(tensor: Any) -> Tensor:
    """The whole tensor, gathered from all processes if it is sharded; every process calls it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor
