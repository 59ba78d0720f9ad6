"""Host memory: refuse allocations that do not fit, and keep freed memory for the next step."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_OLD_LIMIT = 32 << 20
"""Largest M_MMAP_THRESHOLD that every glibc accepts, in bytes."""


def check_fits(what: str, size: int) -> None:
    """Refuse data that are larger than the machine's memory, before anything is allocated.

    Args:
        what: the data, for the error.
        size: their size in bytes.

    Raises:
        ValueError: if the machine has less.
    """
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a Unix
        return
    if size > whole > 0:
        raise ValueError(
            f"{what} need at least {size / 2**30:,.0f} GiB of memory, and this machine has "
            f"{whole / 2**30:,.0f} GiB"
        )


def keep_freed_memory(size: int = 128 << 20) -> bool:
    """Let the C library keep freed blocks of up to ``size`` bytes for reuse, in the whole process.

    glibc returns large freed blocks to the kernel at once, so a training step on the CPU has a page fault for
    every 4 KiB of its activations, logits and gradients: 10 % of a PPO cycle with a vocabulary of 1,000, 20 %
    with one of 50,000. With this setting the process keeps its memory between steps, and a few more blocks of
    each size. If the user has set ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_``, nothing is
    changed.

    Args:
        size: in bytes; larger blocks are returned to the kernel as before.

    Returns:
        Whether it has an effect; False if the C library is not glibc.

    Raises:
        ValueError: if ``size`` is below 1.

    Example:
        >>> isinstance(keep_freed_memory(), bool)
        True
    """
    if size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    if any(name in os.environ for name in _SETTINGS) or not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(_M_MMAP_THRESHOLD, min(size, 2**31 - 1)) or mallopt(_M_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, min(size, 2**31 - 1)))


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError):  # not a Unix, or another C library
        return False
