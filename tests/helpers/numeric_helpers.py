"""Comparisons of float32 results that come by different orders of summation."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def relative_error(found: Iterable[Tensor | None], expected: Iterable[Tensor | None]) -> float:
    """Largest difference of any element, divided by the largest absolute value of all expected ones.

    Which instructions a CPU has decides how a sum is rounded, so an absolute bound on values of size 10 is no
    bound: float32 resolves 1e-6 there. A gradient of None counts as 0.

    >>> import torch
    >>> relative_error([torch.tensor([8.0, 0.125])], [torch.tensor([8.0, 0.0])])
    0.015625
    """
    difference = scale = 0.0
    for a, b in zip(found, expected, strict=True):
        if a is None or b is None:
            assert a is None and b is None, "only one side has a gradient"
            continue
        assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
        difference = max(difference, float((a.detach() - b.detach()).abs().max()) if a.numel() else 0.0)
        scale = max(scale, float(b.detach().abs().max()) if b.numel() else 0.0)
    assert scale > 0.0, "there is nothing to compare: all expected values are 0"
    return difference / scale
