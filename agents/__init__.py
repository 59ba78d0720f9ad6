"""Agents: policies, online and offline learners, evaluation and loggers; imported as ``textenv.agents``.

Names load on first use, so importing this package is light (no torch).
"""

import lazy_loader

if __name__ != "textenv.agents":
    raise ImportError(
        "this folder is imported as textenv.agents; put your own agents.py elsewhere on sys.path "
        "or import textenv.agents"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
