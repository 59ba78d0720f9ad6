"""Where the public names live; they load on first use."""

from .loading import episodes_from_records, preferences_from_records, prompts_from_records
from .records import FORMATS, Records, load_columns

__all__ = [
    "FORMATS",
    "Records",
    "episodes_from_records",
    "load_columns",
    "preferences_from_records",
    "prompts_from_records",
]
