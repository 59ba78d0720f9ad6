"""Tiny tokenizers of every family, made by the classes that large models' tokenizers have."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)

from textenv.tasks.letters import letter_tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, the answer: 42.",
    "a\nb\n\nthe end. it's the brown dog's world",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789:.,'?"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BYTES = [f"<0x{i:02X}>" for i in range(256)]


@cache
def _piece_merges() -> tuple[tuple[str, str], ...]:
    """BPE merges over texts whose blanks are "▁", as SentencePiece's BPE has them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    texts = [text.replace("\n", " ") for text in CORPUS]
    backend.train_from_iterator(texts * 3, trainers.BpeTrainer(vocab_size=110, show_progress=False))
    return _merges(backend)


@cache
def _byte_merges() -> tuple[tuple[str, str], ...]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    return _merges(backend)


def _merges(backend: Tokenizer) -> tuple[tuple[str, str], ...]:
    import json

    return tuple((a, b) for a, b in json.loads(backend.to_str())["model"]["merges"])


def _vocab(start: list[str], merges: tuple[tuple[str, str], ...]) -> dict[str, int]:
    return {token: i for i, token in enumerate(dict.fromkeys([*start, *(a + b for a, b in merges)]))}


def _pieces(*special: str) -> dict[str, Any]:
    merges = _piece_merges()
    return {
        "vocab": _vocab([*special, *_BYTES, "▁", *LETTERS, "▁▁"], merges),
        "merges": [("▁", "▁"), *merges],
    }


def _byte_level() -> dict[str, Any]:
    merges = (*_byte_merges(), ("Ċ", "Ċ"))
    return {"vocab": _vocab(sorted(pre_tokenizers.ByteLevel.alphabet()), merges), "merges": list(merges)}


def llama_2(**options: Any) -> Any:
    return LlamaTokenizer(**_pieces("<unk>", "<s>", "</s>"), add_bos_token=True, **options)


def llama_2_normalizer() -> Any:
    """As in the tokenizer.json of Llama 2: the blank in front is written by a normalizer."""
    made = _pieces("<unk>", "<s>", "</s>")
    backend = Tokenizer(
        models.BPE(made["vocab"], made["merges"], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def llama_3() -> Any:
    made = _byte_level()
    backend = Tokenizer(models.BPE(made["vocab"], made["merges"], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    )
    bos = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def qwen_2() -> Any:
    made = Qwen2Tokenizer(**_byte_level(), eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return made


def gpt_2(**options: Any) -> Any:
    return GPT2Tokenizer(**_byte_level(), **options)


def gemma() -> Any:
    made = _pieces("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    tokenizer = GemmaTokenizer(**made, add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer


def t5() -> Any:
    pieces = {"▁": -4.0, **{letter: -6.0 for letter in LETTERS}}
    for a, b in _piece_merges():
        pieces[a + b] = -5.0 - 0.5 * (8 - min(8, len(a + b)))
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *pieces.items()]
    return T5Tokenizer(vocab=scores, extra_ids=0)


def bert() -> Any:
    words = ["the", "quick", "brown", "bro", "world", "hello", "answer", "end", "it"]
    vocab = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *LETTERS,
        *("##" + c for c in LETTERS),
        *words,
        "##wn",
    ]
    return BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})


def letters() -> Any:
    return letter_tokenizer(LETTERS + " \n")


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama-2": cache(llama_2),
    "llama-2-legacy": cache(lambda: llama_2(legacy=True)),
    "llama-2-normalizer": cache(llama_2_normalizer),
    "mistral": cache(lambda: llama_2(add_prefix_space=False)),
    "llama-3": cache(llama_3),
    "qwen-2": cache(qwen_2),
    "gpt-2": cache(gpt_2),
    "gpt-2-prefix": cache(lambda: gpt_2(add_prefix_space=True)),
    "gemma": cache(gemma),
    "t5": cache(t5),
    "bert": cache(bert),
    "letters": cache(letters),
}
"""name -> a function that gives the tokenizer (made once)."""
