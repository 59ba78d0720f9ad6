"""``torch.compile`` for teacher-forced passes: the backbone below the LM head is compiled.

Only ``SplitModel.backbone`` uses the compiled function. Decoding runs the model without it, because of its
cache, CUDA graphs and changing shapes. Shapes are dynamic, so another batch size or length needs no new
compilation.
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
    """Compile the model's teacher-forced passes.

    Compilation runs in the first pass with gradients and in the first without, and takes seconds to minutes.

    Args:
        model: a transformers causal LM whose LM head takes the output of ``base_model``.
        backend: backend of ``torch.compile``: "inductor" generates kernels; "aot_eager" and "eager" are for
            debugging.

    Raises:
        ValueError: if torch has no such backend.
        UnsupportedModelError: if the input of the LM head is not ``base_model``'s ``last_hidden_state``.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"compile must be True or one of torch's backends {known}, got {backend!r}")
    trunk = split_model(model).trunk
    if trunk is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} can't be compiled: its LM head does not take the output of base_model "
            "unchanged"
        )

    def run(ids: Tensor, attention_mask: Any, position_ids: Tensor | None) -> Tensor:
        # Right padding needs no mask, and without a mask attention uses its causal kernel.
        masked = isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() > 2)
        options = {} if position_ids is None else {"position_ids": position_ids}
        if masked:
            options["attention_mask"] = attention_mask
        return trunk(input_ids=ids, use_cache=False, **options).last_hidden_state

    TRUNKS[model] = trunk, torch.compile(_with_new_code(run), dynamic=True, backend=backend)


def _with_new_code(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function with a new code object.

    Torch counts recompilations per code object and stops compiling after a few. With a new code object per
    model, policy and critic (and the policies of a study) are counted separately.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"trunk_{next(_NUMBERS)}")
    return types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
