"""Memory and CPU time of an environment with very many prompts, read from a JSON-lines file.

    python -m benchmarks.prompt_memory --prompts 1000000

Each record has a prompt of about 60 characters, a short answer and a number. The environment is made in a
separate process. Memory is counted above the resident size of that process after the imports. "tokenizer s"
is the CPU time of the tokenizer's own encoding of the same texts, which is a part of "CPU s"; for
conversations, "template s" is that of rendering them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import arguments, print_table, write_json
from benchmarks.worker import Pipe, Worker, close_all, memory_mb

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS = 8
WORDS = 4096
"""Distinct words of the prompts."""


FIGURES = {
    "cpu_s": "CPU s",
    "tokenizer_s": "tokenizer s",
    "template_s": "template s",
    "resident_mb": "resident MB",
    "peak_mb": "peak MB",
}
"""Name -> heading."""


def words(count: int = WORDS) -> list[str]:
    """Pronounceable words of two or three syllables."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
    return ["".join(draw.choices(syllables, k=draw.choice((2, 3)))) for _ in range(count)]


def write_records(path: Path, count: int, *, chat: bool = False) -> None:
    """``count`` records as JSON lines; with ``chat`` a prompt is a system and a user message."""
    draw, vocabulary = random.Random(1), words()
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            prompt: object = f"{i}: " + " ".join(draw.choices(vocabulary, k=9))
            if chat:
                prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
            record = {"prompt": prompt, "answer": draw.choice(vocabulary), "level": i % 7}
            file.write(json.dumps(record) + "\n")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, split at white space."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", *dict.fromkeys(words())])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )


def limits(envs: Any, tokenizer: Any) -> dict[str, float]:
    """CPU seconds spent in other libraries: encoding the texts, rendering the conversations."""
    from textenv.prompts.packed_ids import chunks

    prompts, seconds = envs.unwrapped.prompts, {"tokenizer_s": 0.0, "template_s": 0.0}
    for texts in chunks(prompts.texts, 256):
        begin = time.process_time()
        tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=True)
        seconds["tokenizer_s"] += time.process_time() - begin
    for chats in chunks(prompts.columns.get("prompt_messages", ()), 256):
        begin = time.process_time()
        tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        seconds["template_s"] += time.process_time() - begin
    return seconds


def serve(case: dict[str, object]) -> None:
    """The measured process: make the environment, play a few episodes."""
    pipe = Pipe()
    import gymnasium as gym
    import torch

    import textenv
    from textenv.tasks.bpe import bpe_tokenizer

    torch.set_num_threads(1)
    if case["tokenizer"] == "word":
        tokenizer = word_tokenizer()
    else:
        tokenizer = bpe_tokenizer([" ".join(words())], vocab_size=8192)  # one token for most words
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    # Load a few thousand prompts first, so that imports at first use are not part of the figure.
    few = [{"prompt": f"bo {i}", "answer": "ba", "level": i} for i in range(5000)]
    gym.make_vec("TextRLHF-v0", num_envs=ROWS, prompts=few, tokenizer=tokenizer, max_new_tokens=2)
    del few

    def cycle() -> dict[str, object]:
        pipe.imported()
        begin = time.process_time()
        envs = gym.make_vec(
            "TextRLHF-v0", num_envs=ROWS, prompts=case["path"], tokenizer=tokenizer, max_new_tokens=2
        )
        cpu = time.process_time() - begin
        episodes = textenv.collect(envs, lambda obs, info: info["key"] % len(tokenizer), 64, seed=0)
        assert len(set(episodes.extras["answer"])) > 1
        resident = memory_mb("VmRSS") - pipe.baseline_mb
        return {"cpu_s": cpu, "resident_mb": resident, **limits(envs, tokenizer)}

    pipe.serve(cycle)


def measure(count: int, repeats: int, tokenizer: str, *, chat: bool = False) -> dict[str, float]:
    """Best of ``repeats`` processes: CPU seconds, resident and peak memory in MB."""
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write_records(path, count, chat=chat)
        for _ in range(repeats):
            worker = Worker(
                sys.executable, "benchmarks.prompt_memory", {"path": str(path), "tokenizer": tokenizer}
            )
            answer = worker.run()
            close_all([worker])
            for name, values in figures.items():
                values.append(float(answer[name]))
    return {name: min(values) for name, values in figures.items()}


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--prompts", type=int, default=1_000_000, help="how many prompts")
    parser.add_argument(
        "--tokenizer", choices=("bpe", "word"), default="bpe", help="byte-level BPE, or words"
    )
    parser.add_argument("case", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.case is not None:
        serve(json.loads(options.case))
        return
    repeats = 1 if options.quick else 3
    figures = {
        name: measure(options.prompts, repeats, options.tokenizer, chat=chat)
        for name, chat in (("text", False), ("chat", True))
    }
    print_table(
        f"{options.prompts:,} prompts from a file, {options.tokenizer} tokenizer, best of {repeats}",
        ["prompts", *FIGURES.values()],
        [[name, *(row[figure] for figure in FIGURES)] for name, row in figures.items()],
        "Memory is counted above the resident size after the imports.",
    )
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
