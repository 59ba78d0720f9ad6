"""Names of loss variants, shared by settings and losses; imports no torch."""

from __future__ import annotations

from typing import Literal

RatioLevel = Literal["token", "sequence"]
"""One probability ratio per token, or one per sequence (GSPO)."""
DPOKind = Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"]
"""Variants of the DPO loss."""
SMOOTHED = ("cdpo", "robust")
"""Variants of the DPO loss that use ``label_smoothing``."""
