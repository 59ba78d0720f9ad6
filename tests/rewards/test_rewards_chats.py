"""Rewards on chats: messages are kept with the prompt and reach reward functions, sync and async."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import textenv
from tests.helpers.reward_helpers import TOKENIZER
from tests.helpers.template_families import chat_tokenizer
from textenv.data.loading import episodes_from_records, load_columns, preferences_from_records
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import generation_prompts, prompt_messages
from textenv.prompts.conversations import MESSAGES, USER_TEXT
from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.functions import FunctionReward
from textenv.rewards.registry import REWARDS, make_reward, register_reward, reward_names
from textenv.rewards.remote import own_targets, register_targets
from textenv.scoring import RewardError
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.make import make_vec_env

CHAT = letter_tokenizer("abcdefghu:;")
CHAT.chat_template = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
A = CHAT.convert_tokens_to_ids("a")


def message(content: str, role: str = "bot") -> dict[str, str]:
    return {"role": role, "content": content}


CHATS = [[message("ab")], [message("c"), message("d", "assistant"), message("e")]]


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    reward_names()  # loads the library's own
    before = dict(REWARDS)
    yield
    REWARDS.clear()
    REWARDS.update(before)


def _envs(rewards: Any, prompts: Any = CHATS, **options: Any) -> Any:
    options = {"tokenizer": CHAT, "max_new_tokens": 2, "shuffle": False, "num_envs": 2, **options}
    return make_vec_env(prompts=prompts, rewards=rewards, **options)


def _play(envs: Any, **options: Any) -> EpisodeBatch:
    return textenv.collect(envs, lambda obs, info: torch.full((envs.num_envs,), A), 2, seed=0, **options)


# -- messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["deferred", "immediate"])
def test_functions_on_chats_are_given_messages(scoring: str) -> None:
    seen: list[Any] = []

    def trl(prompts: Any, completions: Any, prompt_messages: Any, **columns: Any) -> list[float]:
        for prompt, completion, kept in zip(prompts, completions, prompt_messages, strict=True):
            seen.append((prompt, completion))
            assert prompt == kept
        return [len(completion[0]["content"]) + len(prompt[-1]["content"]) for prompt, completion in seen]

    with pytest.warns(
        UserWarning, match="reward 'trl' is given prompts and completions as lists of messages"
    ):
        envs = _envs([trl])
    batch = _play(envs, scoring=scoring)
    answer = [message("aa", "assistant")]
    assert sorted(seen, key=str) == sorted([(prompt, answer) for prompt in CHATS], key=str)
    assert batch.returns.tolist() == [4.0, 3.0]


def test_a_registered_function_chooses_texts_or_messages() -> None:
    seen: dict[str, Any] = {}

    def keeps(name: str, **options: Any) -> None:
        @register_reward(name, **options)
        def function(prompts: Any, completions: Any) -> list[float]:
            seen[name] = (prompts, completions)
            return [0.0] * len(completions)

    keeps("texts", messages=False)
    keeps("marked", messages=False, special_tokens=True)
    keeps("chats", messages=True)
    eos = CHAT.eos_token_id
    envs = _envs(["texts", "marked", "chats"], prompts=CHATS[:1], num_envs=1)
    textenv.collect(envs, lambda obs, info: [A if int(obs["prompt_length"][0]) else eos], 1, seed=0)
    assert seen["texts"] == (["b:ab;a:"], ["aa"])
    assert seen["chats"] == ([CHATS[0]], [[message("aa", "assistant")]])
    envs.reset(seed=0)
    envs.step([eos])
    assert seen["texts"][1] == [""]
    assert seen["marked"][1] == [CHAT.eos_token]
    assert seen["chats"][1] == [[message("", "assistant")]]
    # Plain text prompts: texts as ever, or one message of the user.
    _play(_envs(["texts", "chats"], prompts=["ab", "c"]))
    assert seen["texts"][0] == ["ab", "c"]
    assert seen["chats"][0] == [[message("ab", "user")], [message("c", "user")]]


def test_texts_in_a_chat_template_stay_texts_for_functions() -> None:
    seen = {}

    def own(prompts: list[str], completions: list[str], prompt_text: list[str]) -> list[float]:
        seen.update(prompts=prompts, completions=completions, prompt_text=prompt_text)
        return [0.0] * len(prompts)

    batch = _play(_envs([own], prompts=["ab", "c"], chat_template=True))
    assert seen == {"prompts": ["u:ab;a:", "u:c;a:"], "completions": ["aa", "aa"], "prompt_text": ["ab", "c"]}
    assert prompt_messages(batch, CHAT) == [[message("ab", "user")], [message("c", "user")]]


def test_messages_survive_saving_selecting_and_joining(tmp_path: Path) -> None:
    batch = _play(_envs([]))
    assert batch.extras[MESSAGES] == CHATS
    for name in ("episodes.jsonl", "episodes"):
        batch.save(tmp_path / name)
        assert prompt_messages(EpisodeBatch.load(tmp_path / name), CHAT) == CHATS
    joined = EpisodeBatch.concat([batch.select([1]), batch.select([0])])
    assert prompt_messages(joined, CHAT) == CHATS[::-1]
    prompts = PromptSet.from_texts([CHATS[0], "ab"], CHAT, chat_template=True)
    assert prompts.select([1]).extras([0]) == {MESSAGES: [[message("ab", "user")]]}
    with pytest.raises(ValueError, match="the column 'prompt_text' is reserved for the prompts before"):
        PromptSet.from_texts(["a"], CHAT, chat_template=True, columns={USER_TEXT: ["b"]})


def test_records_of_chats_keep_their_messages(tmp_path: Path) -> None:
    user, answer = message("ab", "user"), message("c", "assistant")
    chat = [user, answer, message("d", "user"), message("e", "assistant")]
    by_messages = episodes_from_records(load_columns([{"messages": chat}]), CHAT, append_eos=False)
    by_columns = episodes_from_records(
        load_columns([{"prompt": chat[:3], "completion": chat[3:], "topic": "t"}]), CHAT, append_eos=False
    )
    assert by_messages.extras == {MESSAGES: [chat[:3]]}
    assert by_columns.extras == {"topic": ["t"], MESSAGES: [chat[:3]]}
    by_columns.save(tmp_path / "episodes.jsonl")
    assert prompt_messages(EpisodeBatch.load(tmp_path / "episodes.jsonl"), CHAT) == [chat[:3]]
    every = episodes_from_records(load_columns([{"messages": chat}]), CHAT, append_eos=False, turns="all")
    assert every.extras == {MESSAGES: [[user]]}
    rows = [{"prompt": "ab", "completion": "c"}]
    plain = episodes_from_records(load_columns(rows), CHAT, append_eos=False)
    rendered = episodes_from_records(load_columns(rows), CHAT, append_eos=False, chat_template=True)
    assert (plain.extras, rendered.extras) == ({}, {USER_TEXT: ["ab"]})
    assert prompt_messages(rendered, CHAT) == [[user]]
    row = {"prompt": [user], "chosen": [user, answer], "rejected": [message("d", "assistant")]}
    pairs = preferences_from_records(load_columns([row]), CHAT, append_eos=False)
    assert pairs.chosen.extras == pairs.rejected.extras == {MESSAGES: [[user]]}
    seen: list[Any] = []

    def keep(prompts: Any, completions: Any) -> list[float]:
        seen.append((prompts, completions))
        return [0.0]

    term = FunctionReward(keep)
    with pytest.warns(UserWarning, match="messages=False"):
        _envs([term])
    term.score(by_columns)
    assert seen == [([chat[:3]], [[message("e;", "assistant")]])]


def test_parts_of_records_agree_on_what_prompts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textenv.data.loading._CHUNK", 1)
    text = {"prompt": "ab", "completion": "c"}
    chat = {"prompt": [message("d", "user")], "completion": [message("e", "assistant")]}
    both = episodes_from_records(load_columns([text, chat]), CHAT, append_eos=False, chat_template=True)
    assert both.extras == {MESSAGES: [[message("ab", "user")], [message("d", "user")]]}
    with pytest.raises(
        TypeError, match="the list: prompt and completion must both be texts or both messages"
    ):
        episodes_from_records(load_columns([text, chat]), CHAT, append_eos=False)
    taken = {**chat, MESSAGES: "mine"}
    with pytest.raises(ValueError, match="the list: the column 'prompt_messages' is reserved"):
        episodes_from_records(load_columns([taken]), CHAT, append_eos=False)


def test_a_text_function_that_fails_on_messages_is_told_why() -> None:
    def count(completions: list[str]) -> list[float]:
        return [float(text.strip().count("a")) for text in completions]

    with pytest.warns(UserWarning, match="messages=False"):
        envs = _envs([count])
    with pytest.raises(
        RewardError, match=r"reward 'count' raised AttributeError.*registered with messages=Fal"
    ):
        _play(envs)
    register_reward("count", messages=False)(count)
    assert _play(_envs([count])).returns.tolist() == [2.0, 2.0]
    assert _play(_envs(["count"])).returns.tolist() == [2.0, 2.0]


def test_options_travel_with_the_function() -> None:
    @register_reward("mine", messages=True, special_tokens=True)
    def mine(completions: Any) -> list[float]:
        return [0.0 for _ in completions]

    targets = own_targets([["weighted", {"of": ["mine", {}], "weight": 1}]])
    del REWARDS["mine"]
    register_targets(targets)
    term = make_reward("mine")
    assert isinstance(term, FunctionReward)
    assert (term.options.messages, term.options.special_tokens) == (True, True)
    for wrong in ({"messages": "yes"}, {"special_tokens": 1}):
        with pytest.raises(TypeError, match="must be true or false"):
            register_reward("other", **wrong)
    with pytest.raises(TypeError, match="are for functions"):
        register_reward("other", messages=True)(type("Other", (textenv.RewardTerm,), {}))


# -- async and copies ----------------------------------------------------------------------------------------


async def slow_length(completions: Any, weight: float = 1.0) -> list[float]:
    await asyncio.sleep(0)
    return [weight * len(text) for text in completions]


def test_async_rewards_are_awaited() -> None:
    prompts = ["ab", "c"]
    assert _play(_envs([slow_length], prompts=prompts)).returns.tolist() == [2.0, 2.0]
    together: list[int] = []

    async def one(text: str, count: int) -> float:
        together.append(1)
        while len(together) < count:  # ends only if all of the batch run at once
            await asyncio.sleep(0)
        return float(len(text))

    def each(completions: list[str]) -> list[Any]:
        return [one(text, len(completions)) for text in completions]

    assert _play(_envs([each], prompts=prompts)).returns.tolist() == [2.0, 2.0]

    async def notebook() -> list[float]:
        return _play(_envs([slow_length], prompts=prompts)).returns.tolist()

    assert asyncio.run(notebook()) == [2.0, 2.0]


def test_an_async_reward_within_an_async_reward() -> None:
    async def outer(completions: Any) -> list[float]:
        inner = _play(_envs([slow_length], prompts=["ab", "c"]))
        return [float(inner.returns.sum())] * len(completions)

    assert _play(_envs([outer], prompts=["ab", "c"])).returns.tolist() == [4.0, 4.0]


def test_a_failing_async_reward_is_reported_like_any_other() -> None:
    async def fragile(prompts: list[str], completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        if "c" in prompts:
            raise ValueError("no c")
        return [0.0] * len(prompts)

    message = "reward 'fragile' raised ValueError: no c for prompt 'c', completion 'aa'"
    with pytest.raises(RewardError, match=message):
        _play(_envs([fragile], prompts=["ab", "c"]))


def test_functions_get_copies_of_nested_columns() -> None:
    tests = [["x", {"in": [1]}], ["y", {"in": [2]}]]
    prompts = PromptSet.from_texts(["ab", "c"], TOKENIZER, columns={"tests": tests})
    seen: list[Any] = []

    def greedy(completions: list[str], tests: list[Any], limits: list[int]) -> list[float]:
        seen.append(copy.deepcopy((tests, limits)))
        for case in tests:
            case[1]["in"].clear()
            case.pop()
        limits.append(0)
        tests.clear()
        return [0.0] * len(completions)

    term = FunctionReward(greedy, limits=[1])
    envs = _envs([term], prompts=prompts, tokenizer=TOKENIZER)
    batch = textenv.collect(envs, lambda obs, info: [0, 0], 4, seed=0)
    term.score(batch)
    assert seen == [(tests * 2, [1])] * 2
    assert prompts.columns["tests"] == [["x", {"in": [1]}], ["y", {"in": [2]}]]
    assert batch.extras["tests"] == tests * 2


# -- what opens the assistant's turn -------------------------------------------------------------------------


def test_a_function_may_ask_what_opened_the_assistants_turn() -> None:
    """A template that opens a thinking block leaves the tag out of the completion."""
    tokenizer = chat_tokenizer("thinker")
    spoken = tokenizer("a plan</think>Tea.", add_special_tokens=False)["input_ids"]
    seen: list[Any] = []

    @register_reward("thinks", messages=False)
    def thinks(completions: Any, generation_prompts: Any) -> list[float]:
        seen.extend(zip(generation_prompts, completions, strict=True))
        whole = [opened + text for opened, text in zip(generation_prompts, completions, strict=True)]
        return [float(bool(re.search(r"<think>\n.*</think>.+", text))) for text in whole]

    ask = [[message("Tea?", "user")], [message("Why?", "user")]]
    envs = _envs(["thinks"], prompts=ask, tokenizer=tokenizer)
    batch = _play(envs)
    assert [opened for opened, _ in seen[:2]] == ["<|assistant|><think>\n"] * 2
    assert generation_prompts(batch, tokenizer) == ["<|assistant|><think>\n"] * 2
    played = EpisodeBatch.from_ids([tokenizer("x")["input_ids"]], [spoken], extras={MESSAGES: [ask[0]]})
    term = make_reward("thinks")
    term.tokenizer = tokenizer
    assert term.score(played).tolist() == [1.0]


def test_what_opens_a_turn_is_empty_without_a_template_and_a_column_comes_first() -> None:
    def own(completions: Any, generation_prompts: Any) -> list[float]:
        return [float(len(opened)) for opened in generation_prompts]

    assert _play(_envs([own], prompts=["ab", "c"])).returns.tolist() == [0.0, 0.0]
    assert _play(_envs([own], prompts=["ab", "c"], chat_template=True)).returns.tolist() == [2.0, 2.0]
    given = {"generation_prompts": ["xyz", "wxyz"]}
    with_column = _envs([own], prompts=PromptSet.from_texts(["ab", "c"], CHAT, columns=given))
    assert sorted(_play(with_column).returns.tolist()) == [3.0, 4.0]
    everything: list[str] = []

    def all_keywords(completions: Any, **columns: Any) -> list[float]:
        everything.extend(columns)
        return [0.0] * len(completions)

    _play(_envs([all_keywords], prompts=["ab", "c"], chat_template=True))
    assert "generation_prompts" not in everything
