"""Load users' data (files, folders, ``datasets`` objects, hub ids) as prompts, episodes or pairs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
