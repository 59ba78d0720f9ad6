"""The auditor of tasks, partners and rewards: does an environment keep the promises that training needs?"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
