"""Where fetched data and trained tokenizers are kept: the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TEXTENV_CACHE"


def cache_folder() -> Path:
    """``$TEXTENV_CACHE`` if set, else the platform's cache folder for "textenv". It need not exist yet."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("textenv"))
