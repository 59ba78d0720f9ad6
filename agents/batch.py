"""The former place of ``TrainingBatch`` and ``Totals``, which ``textenv.agents`` exports."""

from __future__ import annotations

import warnings

from textenv.agents.data.batch import Totals, TrainingBatch, rows_of_step

__all__ = ["Totals", "TrainingBatch", "rows_of_step"]

warnings.warn(
    "textenv.agents.batch goes in version 0.3: import TrainingBatch and Totals from textenv.agents",
    DeprecationWarning,
    stacklevel=2,
)
