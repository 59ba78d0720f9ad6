"""Where the public names live; they load on first use."""

from .prompt_set import PromptSet, encode_prompts

__all__ = [
    "PromptSet",
    "encode_prompts",
]
