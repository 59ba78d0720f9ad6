"""Pairs of whole dialogues without a column prompt, as HH-RLHF has them."""

from __future__ import annotations

from typing import Any

import pytest

from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.data.preferences import as_labelled, as_pairs
from textenv.agents.data.reward_records import as_reward_batch
from textenv.data.implicit_prompts import split_pair
from textenv.data.loading import load_columns
from textenv.tasks.prompts import build_prompts

ASK = "\n\nHuman: What is tea?\n\nAssistant: A drink.\n\nHuman: Really?\n\nAssistant:"
ROWS = [
    {"chosen": ASK + " Yes, it is.", "rejected": ASK + " No, it's a car.", "who": "ann"},
    {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go.",
        "who": "bob",
    },
]
USER = {"role": "user", "content": "Hi"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Hello!", "Go."))


def as_trl(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """What TRL's ``extract_prompt`` gives (trl/data_utils.py)."""
    index = 0
    for index in range(min(len(chosen), len(rejected))):
        if chosen[index] != rejected[index]:
            if chosen[index - 1] == " ":
                index -= 1
            break
    return chosen[:index], chosen[index:], rejected[index:]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        *((row["chosen"], row["rejected"]) for row in ROWS),
        ("The sky is blue.", "The sky is green."),
        ("Q: a\nA: 1", "Q: a\nA: 2"),
        ("The sky\nBlue.", "The sky\nGreen."),
        ("<|im_start|>assistant\nBlue.", "<|im_start|>assistant\nGreen."),
        ([USER, YES], [USER, NO]),
        ([USER, YES, USER, YES], [USER, YES, USER, NO]),
    ],
)
def test_the_prompt_is_what_trl_takes_for_it(chosen: Any, rejected: Any) -> None:
    assert split_pair(chosen, rejected, "row 0") == as_trl(chosen, rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [  # where TRL cuts within an answer or a word
        (ASK + " I think so.", ASK + " I doubt it.", (ASK, " I think so.", " I doubt it.")),
        (ASK + " Yes.", ASK + " Yes. It is.", (ASK, " Yes.", " Yes. It is.")),
        (ASK, ASK + " Yes.", (ASK, "", " Yes.")),
        ("The sky is blue", "The sky is black", ("The sky is", " blue", " black")),
        ("The sky is", "The sky isn't", ("The sky", " is", " isn't")),
    ],
)
def test_no_answer_and_no_word_is_cut(chosen: str, rejected: str, expected: tuple[str, str, str]) -> None:
    assert split_pair(chosen, rejected, "row 0") == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("Blue.", "Green.", "they share no beginning: 'Blue.' and 'Green.'"),
        ("It is", "It is blue", "one is the beginning of the other: 'It is'"),
        ("a", "a", "chosen and rejected are equal: 'a'"),
        (
            "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "Human: a\n\nAssistant: x\n\nHuman: c\n\nAssistant: y",
            r"they part before their last turn \(at character 21\)",
        ),
        (
            "Human: a\n\nAssistant: b\n\nHuman: c",
            "Human: a\n\nAssistant: d",
            "they part before their last turn",
        ),
        ([YES], [NO], "their first messages differ"),
        ([USER, YES, USER, YES], [USER, NO, USER, NO], "chosen has 3 messages behind the 1 shared ones"),
        ([USER], [USER, YES], "chosen has 0 messages behind the 1 shared ones"),
        ([USER], "Hi", "must both be texts or both messages"),
    ],
)
def test_what_has_no_one_prompt_is_refused(chosen: Any, rejected: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"row 7: .*{message}"):
        split_pair(chosen, rejected, "row 7")


def test_all_that_reads_pairs_reads_them(byte_tokenizer: Any) -> None:
    records = load_columns(ROWS)
    assert records.columns == ("prompt", "chosen", "rejected", "who")
    pairs = as_pairs(ROWS, byte_tokenizer)
    assert pairs.chosen.texts(byte_tokenizer)[0] == (ASK, " Yes, it is.")
    assert pairs.rejected.texts(byte_tokenizer)[0] == (ASK, " No, it's a car.")
    assert pairs.chosen.extras == {"who": ["ann", "bob"]}
    assert as_demonstrations(ROWS, byte_tokenizer).completion_texts(byte_tokenizer) == [
        " Yes, it is.",
        " Hello!",
    ]
    episodes, desirable = as_labelled(ROWS, byte_tokenizer)
    assert (len(episodes), desirable.tolist()) == (4, [True, True, False, False])
    assert len(as_reward_batch({"pairs": ROWS}, byte_tokenizer)) > 0
    prompts = build_prompts(data=ROWS, tokenizer=byte_tokenizer, validation=0)
    assert list(prompts.prompts) == [ASK, "\n\nHuman: Hi\n\nAssistant:"]
    assert prompts.columns["chosen"] == [" Yes, it is.", " Hello!"]


def test_messages_give_the_same_as_a_column_prompt(byte_tokenizer: Any) -> None:
    import torch

    whole = as_pairs([{"chosen": [USER, YES], "rejected": [USER, NO]}], byte_tokenizer)
    apart = as_pairs([{"prompt": [USER], "chosen": [YES], "rejected": [NO]}], byte_tokenizer)
    for one, other in ((whole.chosen, apart.chosen), (whole.rejected, apart.rejected)):
        assert torch.equal(one.input_ids, other.input_ids) and one.extras == other.extras


def test_a_bad_pair_is_named_and_other_columns_are_left_alone(byte_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"row 2.*they share no beginning"):
        as_pairs([*ROWS, {"chosen": "a", "rejected": "b", "who": "eve"}], byte_tokenizer)
    assert load_columns([{"text": "a", **ROWS[0]}]).columns == ("text", "chosen", "rejected", "who")
    assert load_columns(ROWS, columns=["chosen"]).columns == ("chosen", "rejected", "who")
    with pytest.raises(ValueError, match="chosen is null"):
        as_pairs([ROWS[0], {"chosen": None, "rejected": "b", "who": "eve"}], byte_tokenizer)
