"""Arguments of an environment as settings for files and command lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class EnvOptions(Config):
    """Options of the environment; None is the task's setting."""

    task_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the task; `textenv tasks NAME` lists them."""
    max_new_tokens: int | None = None
    """Token budget of a response."""
    min_new_tokens: int | None = None
    """Least tokens of a response: stop tokens are not allowed before."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens; longer ones are cut."""
    truncation_side: Literal["left", "right", "error"] = "left"
    """Side on which a long prompt is cut; "error" refuses it."""
    chat_template: bool = False
    """Render text prompts with the tokenizer's chat template (messages always are)."""
    stop_strings: tuple[str, ...] | None = None
    """Strings that end a response."""
    partner: str | list[Any] | None = None
    """Replies when a turn of the policy ends: a name or ["name", {arguments}]."""
    max_turns: int | None = None
    """Most turns of the policy in an episode with a partner."""
    max_turn_tokens: int | None = None
    """Most tokens of a turn."""
    max_length: int | None = None
    """Most tokens of an episode with a partner, prompt and replies included."""
    samples_per_prompt: int = 1
    """Consecutive episodes with the same prompt."""
    shuffle: bool = True
    """New random order of the prompts in every epoch."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(max_new_tokens=">= 1", min_new_tokens=">= 0", max_prompt_tokens=">= 1")
        self.check(max_turns=">= 1", max_turn_tokens=">= 1", max_length=">= 1", samples_per_prompt=">= 1")

    def kwargs(self) -> dict[str, Any]:
        """Arguments of ``make_vec_env`` that differ from their defaults."""
        own = {name: getattr(self, name) for name in self.to_dict()}
        default = type(self)()
        return {name: value for name, value in own.items() if value != getattr(default, name)}
