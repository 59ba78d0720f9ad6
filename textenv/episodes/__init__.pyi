"""Where the public names live; they load on first use."""

from .batch import EpisodeBatch
from .preferences import PreferenceBatch
from .storage import load_episodes, load_preferences, save_episodes, save_preferences

__all__ = [
    "EpisodeBatch",
    "PreferenceBatch",
    "load_episodes",
    "load_preferences",
    "save_episodes",
    "save_preferences",
]
