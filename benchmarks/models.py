"""Random models, tokenizers and prompts, the same for every contender (torch and transformers only).

A constant bias of EOS in the LM head ends the episodes. So no contender needs a logits processor, and all
lengths are geometric with the same mean. Shape letters: V vocabulary, d width, P prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

NEVER = -1e4
"""Logit of a token that is never sampled; finite, because entropies multiply it by a probability of zero."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Size of a random GPT-2 and where its episodes end."""

    layers: int
    width: int
    heads: int
    vocab: int
    positions: int = 256
    eos_probability: float = 0.0
    """Probability of EOS at every step; with 0 it is never sampled."""
    seed: int = 0

    @property
    def eos_token_id(self) -> int:
        """The second last id."""
        return self.vocab - 2

    @property
    def pad_token_id(self) -> int:
        """The last id; no model samples it."""
        return self.vocab - 1

    def config(self, layers: int | None = None) -> GPT2Config:
        """The transformers configuration without dropout; ``layers`` changes the depth."""
        return GPT2Config(
            vocab_size=self.vocab,
            n_positions=self.positions,
            n_embd=self.width,
            n_layer=layers or self.layers,
            n_head=self.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=self.eos_token_id,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
        )


def language_model(shape: ModelShape) -> GPT2LMHeadModel:
    """Random GPT-2 whose LM head has a bias that ends episodes with probability ``shape.eos_probability``.

    The embedding of the end token is zero, so its logit is the bias alone. It is set against the other
    logits on random text, which makes the lengths geometric.
    """
    torch.manual_seed(shape.seed)
    model = GPT2LMHeadModel(shape.config()).eval()
    head = nn.Linear(shape.width, shape.vocab, bias=True)
    head.weight = model.transformer.wte.weight
    model.lm_head = head
    with torch.no_grad():
        head.weight[shape.eos_token_id] = 0.0
        head.bias.zero_()
        head.bias[[shape.eos_token_id, shape.pad_token_id]] = NEVER
        if shape.eos_probability:
            text = torch.randint(shape.vocab - 2, (8, min(64, shape.positions)))
            others = model(text).logits.logsumexp(-1).mean().item()
            odds = shape.eos_probability / (1.0 - shape.eos_probability)
            head.bias[shape.eos_token_id] = others + math.log(odds)
    return model


def sequence_classifier(shape: ModelShape, *, layers: int, seed: int) -> GPT2ForSequenceClassification:
    """Random GPT-2 with one scalar output: a reward model or a separate value model."""
    torch.manual_seed(seed)
    config = shape.config(layers)
    config.num_labels = 1
    return GPT2ForSequenceClassification(config).eval()


def word_tokenizer(shape: ModelShape) -> PreTrainedTokenizerFast:
    """One word per id (``w0 w1 ...``), with the shape's end and padding tokens."""
    words = {f"w{i}": i for i in range(shape.vocab - 2)}
    words |= {"<eos>": shape.eos_token_id, "<pad>": shape.pad_token_id}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<eos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="w0",
        padding_side="left",
    )


def random_prompts(shape: ModelShape, *, count: int, length: int, seed: int = 1) -> torch.Tensor:
    """(P, length) int64 prompts of ordinary words."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocab - 2, (count, length), generator=generator)
