"""Tasks: prompts, tokenizer, rewards and limits that make an environment; imported as ``textenv.tasks``.

Names load on first use, so importing this package is light (no torch).
"""

import lazy_loader

if __name__ != "textenv.tasks":
    raise ImportError(
        "this folder is imported as textenv.tasks; put your own tasks.py elsewhere on sys.path "
        "or import textenv.tasks"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
