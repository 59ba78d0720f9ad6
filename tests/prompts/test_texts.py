"""Texts and tokens: prompt and completion read as all tokens do, whatever the tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaTokenizer

from tests.helpers.env_helpers import byte_level_tokenizer
from tests.helpers.tokenizer_families import FAMILIES
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.texts import split_texts
from textenv.prompts.continuations import encode_continuations
from textenv.prompts.pairs import encode_pairs
from textenv.prompts.prompt_set import encode_prompts
from textenv.rewards import make_reward
from textenv.rewards.retokenize import text_ids
from textenv.tasks.make import make_vec_env

BYTES = byte_level_tokenizer()


def llama() -> LlamaTokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    return LlamaTokenizer(vocab=vocab, merges=[], add_bos_token=True)


class TestSplit:
    def test_a_blank_at_the_seam_is_the_completions(self) -> None:
        tokenizer = llama()
        ids = tokenizer("hello world")["input_ids"]
        at = ids.index(tokenizer.convert_tokens_to_ids("▁"), 2)
        episodes = EpisodeBatch.from_ids([ids[:at]], [ids[at:]])
        assert episodes.texts(tokenizer) == [("hello", " world")]
        assert episodes.prompt_texts(tokenizer) == ["hello"]
        assert episodes.completion_texts(tokenizer) == [" world"]

    def test_special_tokens_on_demand(self) -> None:
        tokenizer = llama()
        ids = [*tokenizer("hello world")["input_ids"], tokenizer.eos_token_id]
        episodes = EpisodeBatch.from_ids([ids[:7]], [ids[7:]])
        assert episodes.completion_texts(tokenizer) == [" world"]
        assert episodes.completion_texts(tokenizer, skip_special_tokens=False) == [" world</s>"]

    def test_a_character_on_the_seam_is_the_completions(self) -> None:
        ids = BYTES("aéb")["input_ids"]  # é is two tokens
        assert split_texts([ids, ids, ids], [1, 2, 3], BYTES) == [("a", "éb"), ("a", "éb"), ("aé", "b")]
        assert split_texts([ids[:2]], [2], BYTES) == [("a\ufffd", "")]


WORDS = st.sampled_from(
    ["the", " ", "bro", "wn", "  ", ".", ": ", "42", "'s", "\n", "\n\n", " dog", "x", "?", "é", "日本", "\t"]
)
LOSSY = {"bert", "t5"}
"""Families that cannot say every text; the others read back exactly what they were given."""


def texts(family: str) -> st.SearchStrategy[str]:
    drop = {"letters": "é日本\t"}.get(family, "")
    return st.lists(WORDS, max_size=6).map(lambda parts: "".join(c for c in "".join(parts) if c not in drop))


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_records_read_as_prompt_and_completion(self, family: str, data: st.DataObject) -> None:
        """Records -> tokens -> texts of a reward function, of a saved episode, and of the tokenizer."""
        tokenizer = FAMILIES[family]()
        pairs = data.draw(
            st.lists(st.tuples(texts(family).map("a".__add__), texts(family)), min_size=1, max_size=4)
        )
        prompts, completions = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        episodes = EpisodeBatch.from_texts(prompts, completions, tokenizer, append_eos=False)
        whole = [prompt + completion for prompt, completion in pairs]
        read = tokenizer.batch_decode(tokenizer(whole)["input_ids"], skip_special_tokens=True)
        assert ["".join(pair) for pair in episodes.texts(tokenizer)] == read
        assert rewarded(episodes, tokenizer) == episodes.texts(tokenizer)
        if family not in LOSSY:
            start = tokenizer.decode(tokenizer("a", add_special_tokens=False)["input_ids"])[:-1]
            assert episodes.texts(tokenizer) == [(start + p, c) for p, c in pairs]

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_any_tokens_read_as_all_of_them(self, family: str, data: st.DataObject) -> None:
        """Ids -> texts: whatever a policy wrote, and wherever its prompt ended."""
        tokenizer = FAMILIES[family]()
        token = st.integers(0, len(tokenizer) - 1)
        rows = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=3))
        starts = [data.draw(st.integers(1, len(row))) for row in rows]
        pairs = zip(rows, starts, strict=True)
        split = [(row[:start], row[start:]) for row, start in pairs]
        episodes = EpisodeBatch.from_ids([prompt for prompt, _ in split], [response for _, response in split])
        for skip in (True, False):
            read = episodes.texts(tokenizer, skip_special_tokens=skip)
            assert ["".join(pair) for pair in read] == tokenizer.batch_decode(rows, skip_special_tokens=skip)
        assert rewarded(episodes, tokenizer) == episodes.texts(tokenizer)


def rewarded(episodes: EpisodeBatch, tokenizer: Any) -> list[tuple[str, str]]:
    """What a reward function is given."""
    seen: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    term = make_reward(reward)
    term.tokenizer = tokenizer
    term.score(episodes)
    return seen


class TestSeam:
    @pytest.mark.parametrize("family", ["llama-2", "llama-2-legacy", "llama-2-normalizer", "t5"])
    @pytest.mark.parametrize(
        ("prompt", "completion", "pieces"),
        [
            ("answer:", "42", ["4", "2"]),
            ("answer:", " world", ["▁world"]),
            ("the bro", "wn", ["w", "n"]),
            ("", "hello", ["▁hello"]),
        ],
    )
    def test_pieces(self, family: str, prompt: str, completion: str, pieces: list[str]) -> None:
        """No blank is written where the completion begins, except where it begins the whole text."""
        tokenizer = FAMILIES[family]()
        ids = encode_continuations([prompt], [completion], tokenizer)[0]
        assert tokenizer.convert_ids_to_tokens(ids) == pieces

    def test_a_blank_that_the_tokenizer_drops_from_the_prompt(self) -> None:
        tokenizer = FAMILIES["t5"]()
        ids = encode_continuations(["answer: ", "answer:"], ["world", "world"], tokenizer)
        assert tokenizer.convert_ids_to_tokens(ids[0]) == ["▁world"]
        assert tokenizer.decode(ids[1]) == "world" and tokenizer.convert_ids_to_tokens(ids[1][:1]) != [
            "▁world"
        ]

    def test_words_go_on_in_word_piece(self) -> None:
        tokenizer = FAMILIES["bert"]()
        ids = encode_continuations(["the bro", "the ", "the.", "the"], ["wn", "wn", "wn", " wn"], tokenizer)
        assert [tokenizer.convert_ids_to_tokens(row)[0] for row in ids] == ["##wn", "w", "w", "w"]

    @pytest.mark.parametrize("family", ["llama-2", "llama-2-legacy", "llama-3", "gemma", "mistral"])
    def test_bos_is_there_once(self, family: str) -> None:
        tokenizer = FAMILIES[family]()
        bos = tokenizer.bos_token
        prompts, completions = ["the dog", bos + "the dog", ""], [" x", bos + " x", bos + "x"]
        episodes = EpisodeBatch.from_texts(prompts, completions, tokenizer, append_eos=False)
        assert (episodes.input_ids == tokenizer.bos_token_id).sum(-1).tolist() == [1, 1, 1]
        assert (
            encode_prompts([bos + "the dog"], tokenizer, max_prompt_tokens=2)[0][0] == tokenizer.bos_token_id
        )

    def test_bos_that_is_eos_is_there_once_behind_an_empty_prompt(self) -> None:
        tokenizer = FAMILIES["gpt-2"]()
        assert tokenizer.bos_token == tokenizer.eos_token
        end, x = tokenizer.eos_token, tokenizer("x")["input_ids"]
        bos = [tokenizer.eos_token_id]
        prompts, responses, _ = encode_pairs(["", "x", ""], [end + "x", end + "x", end], tokenizer)
        assert prompts == [bos, x, bos]
        assert responses == [x + bos, bos + x + bos, bos]

    def test_whole_texts_of_a_scorer_have_bos_once(self) -> None:
        tokenizer = FAMILIES["llama-2"]()
        ids = text_ids(tokenizer, ["the dog", "<s>the dog"])
        assert [row.count(tokenizer.bos_token_id) for row in ids] == [1, 1]


def test_saved_episodes_and_rendered_rows_read_so(tmp_path: Path) -> None:
    tokenizer = FAMILIES["llama-2"]()
    episodes = EpisodeBatch.from_texts(["hello"], [" world"], tokenizer)
    episodes.save(tmp_path / "episodes.jsonl", tokenizer=tokenizer)
    row = json.loads((tmp_path / "episodes.jsonl").read_text().splitlines()[0])
    assert (row["prompt"], row["completion"]) == ("hello", " world")
    envs = make_vec_env(1, prompts=["hello"], tokenizer=tokenizer, max_new_tokens=3, render_mode="ansi")
    envs.reset(seed=0)
    envs.step([tokenizer.convert_tokens_to_ids("▁world")])
    assert "hello |  world" in envs.render()[0]
