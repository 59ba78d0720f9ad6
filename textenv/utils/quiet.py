"""Hide notices and progress bars of other libraries, with logging levels and filters."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


def _serious(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def quiet_libraries() -> None:
    """Hide messages that bitsandbytes, DeepSpeed and TensorFlow log when they are imported.

    transformers imports these packages if they are installed. Errors are still shown, and all messages of
    DeepSpeed if a launcher has enabled it. A logging level that is already set is not changed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported
    kernels = logging.getLogger("bitsandbytes")
    if kernels.level == logging.NOTSET:
        kernels.setLevel(logging.ERROR)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "false":
        # A filter, because DeepSpeed sets the level of its logger when it is imported.
        logging.getLogger("DeepSpeed").addFilter(_serious)


@contextmanager
def without_bars() -> Iterator[None]:
    """Disable transformers' progress bars within the block."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
