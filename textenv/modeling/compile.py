"""``torch.compile`` for teacher-forced passes: the trunk below the LM head becomes one compiled function.

Only ``SplitModel.backbone`` asks for it, so decoding, with its cache, graphs and changing shapes, runs the
model as it is. Shapes are symbolic from the first call on: another batch size or length is no reason to
compile again. Shape letters: B rows, L tokens, d width of the LM head's input.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textenv.modeling.attention_masks import UnsupportedModelError
from textenv.modeling.split_model import TRUNKS, split_model

_NUMBERS = itertools.count()


def compile_trunk(model: nn.Module, *, backend: str = "inductor") -> None:
    """Let the model's teacher-forced passes run compiled, from now on.

    The first pass with gradient and the first without compile, which takes from seconds to minutes.

    Args:
        model: a transformers causal LM whose ``base_model`` ends where its LM head begins.
        backend: of ``torch.compile``: "inductor" makes kernels of its own, "aot_eager" and "eager" are for
            finding out what goes wrong.

    Raises:
        ValueError: if torch has no such backend.
        UnsupportedModelError: if the LM head is given something else than its ``last_hidden_state``.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"compile must be True or one of torch's backends {known}, got {backend!r}")
    trunk = split_model(model).trunk
    if trunk is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no trunk whose output its LM head takes as it is, "
            "so it can't be compiled"
        )

    def run(ids: Tensor, attention_mask: Any, position_ids: Tensor | None) -> Tensor:
        # Padding on the right needs no mask, and without one attention takes its causal kernel.
        masked = isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() > 2)
        options = {} if position_ids is None else {"position_ids": position_ids}
        if masked:
            options["attention_mask"] = attention_mask
        return trunk(input_ids=ids, use_cache=False, **options).last_hidden_state

    TRUNKS[model] = trunk, torch.compile(_with_own_code(run), dynamic=True, backend=backend)


def _with_own_code(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function with a code object of its own.

    Torch counts by code object how often it had to compile, and gives up after a few times. So that policy
    and critic (and the policies of a study) do not count together, each trunk has its own.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"trunk_{next(_NUMBERS)}")
    return types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
