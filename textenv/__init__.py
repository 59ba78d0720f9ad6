"""textenv: reinforcement learning on text. Text generation is a vectorized Gymnasium environment.

Importing this package registers ``TextRLHF-v0``. Its names load on first use (``__init__.pyi`` lists them),
so the import is light: it does not import torch.
"""

import gymnasium as gym
import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

gym.register(
    id="TextRLHF-v0",
    entry_point="textenv.tasks.make:make_env",
    vector_entry_point="textenv.tasks.make:make_vec_env",
)
