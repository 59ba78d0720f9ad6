"""A small tokenizer of whole words and pieces for scorers of texts, kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textenv.tasks.storage import kept_tokenizer
from textenv.utils.checks import check_at_least

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertConfig, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_SMALLEST = 300


def wordpiece_tokenizer(texts: Sequence[str], *, vocab_size: int = 12_000) -> PreTrainedTokenizerFast:
    """A lower-case word-piece tokenizer, "[CLS] text [SEP]", for these texts; trained once, then cached.

    Frequent words are one token, which is what a small model can learn the sentiment of.

    Args:
        texts: what to train on.
        vocab_size: V at most; fewer if the texts do not have that many pieces.

    Raises:
        ValueError: if ``vocab_size`` leaves no room for letters.
    """
    from transformers import PreTrainedTokenizerFast

    check_at_least("vocab_size", vocab_size, _SMALLEST)
    backend = kept_tokenizer("wordpiece", texts, vocab_size, _train)
    pad, unknown, start, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, unk_token=unknown, cls_token=start, sep_token=end
    )


def small_bert(
    tokenizer: PreTrainedTokenizerFast, *, layers: int = 1, width: int = 96, heads: int = 4
) -> BertConfig:
    """A BERT config for a tokenizer: reads both ways, one score at [CLS] once it is made a classifier.

    Args:
        tokenizer: gives the vocabulary size and the id of PAD.
        layers: blocks.
        width: of the residual stream, a multiple of ``heads``.
        heads: of each attention layer.

    Raises:
        ValueError: if the width is not a multiple of the number of heads.
    """
    from transformers import BertConfig

    if width % heads:
        raise ValueError(f"width must be a multiple of heads ({heads}), got {width}")
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=256,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return backend
