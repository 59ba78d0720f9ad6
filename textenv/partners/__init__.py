"""Partners: the other roles of an episode of several turns, such as a game, tools or a user."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
