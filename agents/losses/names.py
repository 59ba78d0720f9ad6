"""Names of variants of losses: what settings may choose, and what the losses themselves check."""

from __future__ import annotations

from typing import Literal

RatioLevel = Literal["token", "sequence"]
"""One probability ratio for each token, or one for each sequence (GSPO)."""
DPOKind = Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"]
"""Losses of direct preference optimisation."""
SMOOTHED = ("cdpo", "robust")
"""Losses of direct preference optimisation that use ``label_smoothing``."""
