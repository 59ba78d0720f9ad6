"""Arguments of an environment as settings that a file or a command line can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class EnvOptions(Config):
    """How texts are generated; None is the task's own choice."""

    task_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task; `textenv tasks NAME` lists them."""
    max_new_tokens: int | None = None
    """Token budget of a response."""
    min_new_tokens: int | None = None
    """A response can't end before this many tokens."""
    max_prompt_tokens: int | None = None
    """Longer prompts are cut."""
    truncation_side: Literal["left", "right", "error"] = "left"
    """Which end of a long prompt is cut; "error" refuses it."""
    chat_template: bool = False
    """Render prompts that are texts by the tokenizer's chat template (messages always are)."""
    stop_strings: tuple[str, ...] | None = None
    """Strings that end a response."""
    samples_per_prompt: int = 1
    """Consecutive episodes that share a prompt."""
    shuffle: bool = True
    """Deal the prompts in a fresh random order every epoch."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(max_new_tokens=">= 1", min_new_tokens=">= 0", max_prompt_tokens=">= 1")
        self.check(samples_per_prompt=">= 1")

    def kwargs(self) -> dict[str, Any]:
        """Arguments of ``make_vec_env`` that differ from their defaults."""
        own = {name: getattr(self, name) for name in self.to_dict()}
        default = type(self)()
        return {name: value for name, value in own.items() if value != getattr(default, name)}
