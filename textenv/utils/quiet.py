"""Notices of other libraries that say nothing about a run, held back by logging levels and filters."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet_libraries() -> None:
    """Hold back what packages say when they are merely imported: bitsandbytes, DeepSpeed, TensorFlow.

    transformers imports them where they are installed. Errors are shown, and so is all that DeepSpeed says
    where a launcher asks for it. A level that somebody has set stays.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported
    kernels = logging.getLogger("bitsandbytes")
    if kernels.level == logging.NOTSET:
        kernels.setLevel(logging.ERROR)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "false":
        # A filter, for DeepSpeed sets the level of its logger when it is imported.
        logging.getLogger("DeepSpeed").addFilter(_serious)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers in the block."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
