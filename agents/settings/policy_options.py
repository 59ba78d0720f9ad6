"""How a model becomes a policy, as settings that a file or a command line can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Config):
    """How the model becomes a policy."""

    lora: bool | dict[str, Any] = False
    """Train low-rank adapters only: true, or arguments of peft.LoraConfig such as {r: 16}."""
    train_layers: int | None = None
    """Train only so many top blocks and what follows them."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool | str = False
    """Run teacher-forced passes by torch.compile: true, or the name of one of its backends."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights."""
    device: str | None = None
    """Where model and environment are, such as cuda or cpu; None is the GPU if there is one."""
    temperature: float = 1.0
    """What logits are divided by in sampling, and in all log-probs."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(train_layers=">= 1", temperature="(0, inf)")

    def kwargs(self) -> dict[str, Any]:
        """Arguments of ``LanguagePolicy`` that differ from their defaults."""
        import torch

        own, default = self.to_dict(), type(self)().to_dict()
        given = {name: value for name, value in own.items() if value != default[name]}
        if "dtype" in given:
            given["dtype"] = getattr(torch, given["dtype"])
        return given
