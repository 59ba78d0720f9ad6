"""What the environment tests share: tiny tokenizers of several kinds, environments, random actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import textenv  # noqa: F401 - registers the environment
from tests.helpers.models import letters
from textenv.envs.vector_env import TextVectorEnv
from textenv.prompts.prompt_set import PromptSet

TOKENIZER = letters("abcdefgh")
EOS = TOKENIZER.eos_token_id
V = len(TOKENIZER)
PROMPTS = ["a", "bc", "dad", "h", "face", "gg", "be"]
REWARDS = [["length", {"coef": 0.5}], ["repetition", {"n": 1}]]
MADE: dict[str, Any] = {"prompts": PROMPTS, "tokenizer": TOKENIZER, "rewards": REWARDS, "max_new_tokens": 5}


def vector_env(num_envs: int = 3, **changes: Any) -> TextVectorEnv:
    """A bare environment over the letters."""
    arguments: dict[str, Any] = {
        "prompts": PromptSet.from_texts(PROMPTS, TOKENIZER),
        "tokenizer": TOKENIZER,
        "max_new_tokens": 5,
        **changes,
    }
    return TextVectorEnv(num_envs, **arguments)


def make(**changes: Any) -> gym.Env[Any, Any]:
    """``gym.make`` with rewards around it."""
    return gym.make("TextRLHF-v0", **{**MADE, **changes})


def make_vec(num_envs: int = 3, mode: str | None = None, **changes: Any) -> Any:
    """``gym.make_vec`` with rewards around it."""
    return gym.make_vec("TextRLHF-v0", num_envs, vectorization_mode=mode, **{**MADE, **changes})


def random_actions(steps: int, rows: int, seed: int = 0, stop: float = 0.25) -> np.ndarray:
    """(steps, rows) letters, and EOS with probability ``stop``."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 8, (steps, rows))
    actions[rng.random((steps, rows)) < stop] = EOS
    return actions


def by_key(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    """A policy that is a function of the noise key alone; stops about every eighth time."""
    key = torch.as_tensor(info["key"])
    return torch.where(key % 8 == 0, EOS, (key >> 8) % 8)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, some merges: characters beyond ASCII take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("e", "n"), ("en", "d"), ("Ċ", "Ċ")]
    tokens = [*alphabet, *("".join(pair) for pair in merges), "<eos>"]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """Blanks belong to the word that follows ("▁stop"), and a decoder drops the very first; BOS in front."""
    words = ["<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz.", "▁stop", "▁the", "▁a"]
    merges = [
        *[("▁", "s"), ("▁s", "t"), ("▁st", "o"), ("▁sto", "p"), ("▁", "t"), ("▁t", "h"), ("▁th", "e")],
        ("▁", "a"),
    ]
    words += [a + b for a, b in merges if a + b not in words]
    backend = Tokenizer(BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def closing_tokenizer(start: bool = False) -> PreTrainedTokenizerFast:
    """Letters whose texts are closed by EOS, as T5's are, or opened by it if ``start``, as OPT's are."""
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate([*"abc", "</s>"])}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    template = "</s> $A" if start else "$A </s>"
    backend.post_processor = TemplateProcessing(single=template, special_tokens=[("</s>", 3)])
    bos = {"bos_token": "</s>"} if start else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **bos)
