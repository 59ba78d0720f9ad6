"""The former place of ``TrainingBatch`` and ``Totals``, which ``textenv.agents`` exports."""

from __future__ import annotations

from textenv.agents.data.batch import Totals, TrainingBatch, rows_of_step
from textenv.utils.deprecation import warn_renamed

__all__ = ["Totals", "TrainingBatch", "rows_of_step"]

warn_renamed("textenv.agents.batch", "TrainingBatch and Totals of textenv.agents", stacklevel=3)
