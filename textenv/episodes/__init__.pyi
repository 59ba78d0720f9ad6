"""Where the public names live; they load on first use."""

from .batch import EpisodeBatch
from .files import load_episodes, load_preferences, save_episodes, save_preferences
from .preferences import PreferenceBatch

__all__ = [
    "EpisodeBatch",
    "PreferenceBatch",
    "load_episodes",
    "load_preferences",
    "save_episodes",
    "save_preferences",
]
