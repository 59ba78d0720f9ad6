"""The shape that all small models of the tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GPT2Config, PreTrainedTokenizerBase


def small_gpt2(
    tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int, heads: int, positions: int
) -> GPT2Config:
    """A GPT-2 config without dropout for a tokenizer.

    Args:
        tokenizer: gives the vocabulary size and the ids of BOS, EOS and PAD.
        layers: blocks.
        width: of the residual stream, a multiple of ``heads``.
        heads: of each attention layer.
        positions: longest text in tokens.

    Raises:
        ValueError: if the width is not a multiple of the number of heads.
    """
    from transformers import GPT2Config

    if width % heads:
        raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
