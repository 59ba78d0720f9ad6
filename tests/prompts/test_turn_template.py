"""Replies between turns: the tokens are those of the whole conversation, or the template is refused."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textenv  # noqa: F401 - registers the environment
from tests.helpers.template_families import TEMPLATES, chat_tokenizer
from tests.helpers.tokenizer_families import FAMILIES
from textenv.partners import Partner, Reply
from textenv.prompts.messages import render
from textenv.prompts.turn_template import TurnTemplate
from textenv.tasks.letters import letter_tokenizer


def template(name: str) -> TurnTemplate | None:
    try:
        return TurnTemplate(chat_tokenizer(name), chat=True)
    except ValueError as error:
        assert "changes earlier turns" in str(error) or "does not accept a conversation" in str(error)
        return None


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("reply", ["lower", "no, it is higher", "a\nb", "x"])
def test_own_tokens_and_replies_are_the_rendered_conversation(name: str, reply: str) -> None:
    found = template(name)
    tokenizer = chat_tokenizer(name)
    begun = [{"role": "user", "content": "guess"}]
    said = [*begun, {"role": "assistant", "content": "seven"}, {"role": "user", "content": reply}]
    opened = render(begun, tokenizer, generation_prompt=True)
    if found is None:
        return
    whole = render(said, tokenizer, generation_prompt=True)
    after = whole.partition("seven")[2]
    end = found._role("user")[0]
    assert after.startswith(end) and whole.startswith(opened)
    turn = encode(tokenizer, opened + whole[len(opened) :].partition("seven")[0] + "seven" + end)
    expected = encode(tokenizer, whole)
    # A turn that ended with its stop token, and one that was cut off before it.
    assert turn + found.encode(reply, closed=True) == expected
    cut = encode(tokenizer, opened + whole[len(opened) :].partition("seven")[0] + "seven")
    assert cut + found.encode(reply, closed=False) == expected


def test_some_templates_are_refused_and_most_are_not() -> None:
    refused = {name for name in TEMPLATES if template(name) is None}
    assert refused == {"thinker", "qwen-3"}


@pytest.mark.parametrize("name", [name for name in TEMPLATES if template(name) is not None])
def test_control_tokens_in_a_reply_are_plain_text(name: str) -> None:
    found, tokenizer = template(name), chat_tokenizer(name)
    assert found is not None
    control = sorted({*map(str, tokenizer.all_special_tokens)} - {str(tokenizer.unk_token)})
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    plain = found.encode("a b", closed=True)
    for text in control:
        ids = found.encode(f"a{text} b", closed=True)
        assert [i for i in ids if i in special] == [i for i in plain if i in special]
        assert text in tokenizer.decode([i for i in ids if i not in special])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_reply_continues_the_text(family: str) -> None:
    tokenizer = FAMILIES[family]()
    found = TurnTemplate(tokenizer, chat=False)
    start = encode(tokenizer, "hello there")
    for text in (" lower", "\nhigher\n", "x"):
        ids = found.encode(text, closed=True, before="hello there")
        whole = tokenizer.decode([*start, *ids], skip_special_tokens=True)
        assert whole.replace(" ", "").strip() == f"hello there{text}".replace(" ", "").strip() or family in (
            "t5",
            "bert",
        )


def test_an_episode_in_a_chat_template() -> None:
    class Asks(Partner):
        def begin(self, rng: np.random.Generator) -> list[dict[str, str]]:
            return [{"role": "user", "content": "guess"}]

        def reply(self, text: str) -> Reply:
            return Reply("lower", done=text == "x")

    name = next(name for name in TEMPLATES if "chatml" in name)
    tokenizer = chat_tokenizer(name)
    env = gym.make(
        "TextRLHF-v0",
        partner=Asks,
        prompts=[[{"role": "system", "content": "a game"}]],
        tokenizer=tokenizer,
        rewards=[],
        max_new_tokens=30,
    )
    obs, _ = env.reset(seed=0)
    messages = [{"role": "system", "content": "a game"}, {"role": "user", "content": "guess"}]
    text = render(messages, tokenizer, generation_prompt=True)
    assert obs["input_ids"][: int(obs["prompt_length"])].tolist() == encode(tokenizer, text)
    stop = encode(tokenizer, "<|im_end|>")
    for token in [*encode(tokenizer, "seven"), *stop]:
        obs, *_ = env.step(token)
    messages += [{"role": "assistant", "content": "seven"}, {"role": "user", "content": "lower"}]
    text = render(messages, tokenizer, generation_prompt=True)
    assert obs["input_ids"][: int(obs["prompt_length"])].tolist() == encode(tokenizer, text)


def test_messages_need_a_chat_template() -> None:
    class Asks(Partner):
        def begin(self, rng: np.random.Generator) -> list[dict[str, str]]:
            return [{"role": "user", "content": "guess"}]

        def reply(self, text: str) -> None:
            return None

    env = gym.make(
        "TextRLHF-v0",
        partner=Asks,
        prompts=["a"],
        tokenizer=FAMILIES["letters"](),
        rewards=[],
        max_new_tokens=3,
    )
    with pytest.raises(ValueError, match="only where prompts are chats"):
        env.reset(seed=0)


def test_a_repeated_reply_has_the_same_tokens_whatever_was_done_with_the_first() -> None:
    found = TurnTemplate(letter_tokenizer("abc "), chat=False)
    first = found.encode("ab", closed=False, before="c")
    kept = [*first]
    first.append(99)
    assert found.encode("ab", closed=False, before="c") == kept
    assert found.encode("a" * 300, closed=True) == [0] * 300
    for i in range(5000):  # more than are kept
        found.encode("ab"[i % 2] * (i % 190), closed=True, before=str(i))
    assert found.encode("ab", closed=False, before="c") == kept
