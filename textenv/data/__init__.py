"""Users' data: files, folders, ``datasets`` objects and hub ids as prompts, episodes and preferences."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
