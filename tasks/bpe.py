"""A small byte-pair tokenizer trained on given texts, and kept in the cache by what it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from textenv.tasks.storage import kept_tokenizer
from textenv.utils.checks import check_at_least

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
_BYTES = 256


def bpe_tokenizer(texts: Sequence[str], *, vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer for these texts; trained once (about a second), then cached.

    Every text can be written. BOS, EOS and PAD are one token, so no token is unused; padding is
    recognised by lengths. No special tokens are added.

    Args:
        texts: training texts.
        vocab_size: V, with EOS; fewer if the texts do not have that many pairs.

    Raises:
        ValueError: if ``vocab_size`` leaves no room for the bytes and EOS.
    """
    from transformers import PreTrainedTokenizerFast

    check_at_least("vocab_size", vocab_size, _BYTES + 1)
    backend = kept_tokenizer("bpe", texts, vocab_size, _train)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def _train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = Decoder()
    backend.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend
