"""The user's cache folder, for fetched data and trained tokenizers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VARIABLE = "TEXTENV_CACHE"


def cache_folder() -> Path:
    """``$TEXTENV_CACHE`` if set, else the platform's cache folder for "textenv". It need not exist yet."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("textenv"))


def kept_tokenizer(
    kind: str, texts: Sequence[str], vocab_size: int, train: Callable[[Sequence[str], int], Tokenizer]
) -> Tokenizer:
    """A tokenizer trained on these texts, or the one that was kept when it was trained on them before.

    Args:
        kind: names its file; another way to train is another kind.
        texts: what to train on.
        vocab_size: V.
        train: trains it.
    """
    import tokenizers

    from textenv.utils.files import atomic_file

    # All that the tokenizer depends on, the library's version too.
    written = json.dumps([tokenizers.__version__, vocab_size, kind, list(texts)])
    digest = hashlib.sha256(written.encode()).hexdigest()[:16]
    path = cache_folder() / "tokenizers" / f"{kind}-{vocab_size}-{digest}.json"
    if path.exists():
        return tokenizers.Tokenizer.from_file(str(path))
    trained = train(texts, vocab_size)
    with atomic_file(path) as temporary:
        trained.save(str(temporary))
    return trained
