"""Conversations as tokens, for every family of chat templates: what a policy sees, says and ends with."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.template_families import TEMPLATES, chat_tokenizer, turn_ends_with
from textenv.agents.data.episodes import as_episodes
from textenv.data.loading import (
    episodes_from_records,
    load_columns,
    preferences_from_records,
    prompts_from_records,
)
from textenv.prompts.chat import split_conversation
from textenv.prompts.messages import check_messages, render
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.letters import letter_tokenizer

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def shown(tokenizer: Any, text: str) -> str:
    """The text as its tokens read, special ones with it."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


def ids_of(prompts: PromptSet, i: int = 0) -> list[int]:
    import numpy as np

    ids, _, lengths = prompts.rows(np.array([i]))
    return ids[0, : int(lengths[0])].tolist()


ANSWERS = st.lists(
    st.sampled_from(["the dog", " ", "\n", "42", "é", "brown", "'s", "."]), min_size=1, max_size=4
).map("".join)
WORDS = st.lists(st.sampled_from(["hi", " the fox", "?", "\n\n", "x"]), min_size=1, max_size=3).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
class TestFamilies:
    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_an_answer_is_learned_as_the_template_writes_it(self, name: str, data: st.DataObject) -> None:
        """Records -> tokens -> texts: prompt and answer are the rendered conversation, up to its end."""
        tokenizer, end = chat_tokenizer(name), turn_ends_with(name)
        question, answer = data.draw(WORDS.filter(str.strip)), data.draw(ANSWERS.filter(str.strip))
        if name == "thinker":
            answer = "<think>\nhm\n</think>\n" + answer
        messages = [user(question), assistant(answer)]
        episodes = episodes_from_records(load_columns([{"messages": messages}]), tokenizer)
        prompt, said = episodes.texts(tokenizer, skip_special_tokens=False)[0]
        assert prompt == shown(tokenizer, render(messages[:1], tokenizer, generation_prompt=True))
        last = episodes.input_ids[0, int(episodes.lengths[0]) - 1]
        assert tokenizer.convert_ids_to_tokens([int(last)]) == [end]
        assert said.count(end) == 1 and said.removesuffix(end).strip().endswith(answer.strip()[-1])
        if name == "thinker":
            assert said == answer.removeprefix("<think>\n") + end
        elif name != "llama-2-legacy":  # writes blanks behind special tokens
            whole = shown(tokenizer, render(messages, tokenizer, generation_prompt=False))
            assert whole.startswith(prompt + said)
        assert bool(episodes.action_mask[0, int(episodes.prompt_lengths[0]) :].all())
        seen = ids_of(prompts_from_records(load_columns([{"messages": messages}]), tokenizer))
        assert seen == episodes.input_ids[0, : int(episodes.prompt_lengths[0])].tolist()

    def test_all_turns(self, name: str) -> None:
        tokenizer, end = chat_tokenizer(name), turn_ends_with(name)
        messages = [user("hi"), assistant("the dog"), user("the fox?"), assistant("\n\nbrown 42")]
        records = load_columns([{"messages": messages, "reward": 1.0}])
        if name in ("qwen-3", "thinker"):  # they take the thoughts out of earlier turns
            with pytest.raises(ValueError, match="row 0: the chat template"):
                episodes_from_records(records, tokenizer, turns="all")
            return
        episodes = episodes_from_records(records, tokenizer, turns="all").validate()
        said = tokenizer.decode(episodes.input_ids[0][episodes.action_mask[0]])
        answers = [part.strip() for part in said.split(end)]
        assert answers == ["the dog", "brown 42", ""]
        split = split_conversation(messages, tokenizer, turns="all")
        whole = split.prompt + "".join(text for text, _ in split.parts)
        assert render(messages, tokenizer, generation_prompt=False).startswith(whole)
        assert [chosen for _, chosen in split.parts] == [True, False, True]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_cut_prompt_keeps_bos_roles_and_the_opened_turn(self, name: str, side: str) -> None:
        tokenizer = chat_tokenizer(name)
        words = "quick brown fox jumps over the lazy dog "
        around = ids_of(PromptSet.from_texts(["x"], tokenizer, chat_template=True))
        limit = len(around) + 10
        prompts = PromptSet.from_texts(
            [words * 5], tokenizer, chat_template=True, max_prompt_tokens=limit, truncation_side=side
        )
        ids = ids_of(prompts)
        text = tokenizer.decode(ids)
        head, tail = shown(tokenizer, render([user("@")], tokenizer, generation_prompt=True)).split("@")
        assert len(ids) == limit and text.startswith(head.rstrip()) and text.endswith(tail)
        kept = text[len(head.rstrip()) : len(text) - len(tail)].strip()
        assert len(kept) > 8 and kept in words * 5
        assert (words * 5).startswith(kept) == (side == "right")
        assert (words * 5).strip().endswith(kept) == (side == "left")
        assert prompts.texts == [text]

    def test_a_cut_conversation_loses_its_earliest_turns(self, name: str) -> None:
        tokenizer = chat_tokenizer(name)
        system = [] if name in ("gemma", "thinker") else [{"role": "system", "content": "the dog"}]
        turns = [user("quick fox"), assistant("brown"), user("hello"), assistant("the"), user("lazy?")]
        short = PromptSet.from_texts([[*system, *turns[2:]]], tokenizer, chat_template=True)
        for side in ("left", "right"):
            cut = PromptSet.from_texts(
                [[*system, *turns]],
                tokenizer,
                chat_template=True,
                max_prompt_tokens=len(ids_of(short)) + 3,
                truncation_side=side,
            )
            assert ids_of(cut) == ids_of(short)
        with pytest.raises(ValueError, match=r"prompts\[0\] has .* tokens, expected at most"):
            PromptSet.from_texts(
                [turns], tokenizer, chat_template=True, max_prompt_tokens=5, truncation_side="error"
            )
        with pytest.raises(ValueError, match=r"prompts\[0\] needs .* tokens for BOS and the opened turn"):
            PromptSet.from_texts([turns], tokenizer, chat_template=True, max_prompt_tokens=1)


class TestThinking:
    def test_an_answer_without_the_block_names_the_generation_prompt(self) -> None:
        records = load_columns([{"messages": [user("hi"), assistant("the dog")]}])
        message = r"row 0: the chat template's generation prompt opens the assistant's turn with '<think>\\n'"
        with pytest.raises(ValueError, match=message):
            episodes_from_records(records, chat_tokenizer("thinker"))

    def test_the_block_of_the_template_is_the_answers(self) -> None:
        tokenizer = chat_tokenizer("qwen-3")
        rows = [
            {"messages": [user("hi"), assistant("<think>\nhm\n</think>\n\nyo")]},
            {"messages": [user("hi"), assistant("yo")]},
            {"messages": [user("hi"), assistant("yo")], "chat_template_kwargs": {"enable_thinking": False}},
        ]
        said = [
            episodes_from_records(load_columns([row]), tokenizer).texts(tokenizer, skip_special_tokens=False)[
                0
            ]
            for row in rows
        ]
        assert said[0][1] == "<think>\nhm\n</think>\n\nyo<|im_end|>"
        assert said[1][1] == "<think>\n\n</think>\n\nyo<|im_end|>"
        assert said[2][1] == "yo<|im_end|>" and said[2][0].endswith("assistant\n<think>\n\n</think>\n\n")


class TestTools:
    ROWS = (
        {"tools": [TOOL]},
        {
            "tools": '[{"type": "function", "function": {"name": "add", "parameters": {"type": "object", '
            '"properties": {}}}}]'
        },
    )

    @pytest.mark.parametrize("columns", ROWS)
    def test_they_reach_the_template(self, columns: dict[str, Any]) -> None:
        tokenizer = chat_tokenizer("qwen-3")
        call = {"function": {"name": "add", "arguments": {"a": 1}}}
        calling = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
        messages = [user("hi"), calling, {"role": "tool", "content": "42"}, assistant("yo")]
        for count, said in ((4, "yo<|im_end|>"), (2, "</tool_call><|im_end|>")):
            row = {"messages": messages[:count], **columns}
            episodes = episodes_from_records(load_columns([row]), tokenizer)
            prompt, completion = episodes.texts(tokenizer, skip_special_tokens=False)[0]
            assert prompt.startswith('<|im_start|>system\n# Tools\n{"type": "function"')
            assert completion.endswith(said)
            prompts = prompts_from_records(load_columns([row]), tokenizer)
            assert tokenizer.decode(ids_of(prompts)) == prompt
            assert prompts.columns["tools"][0] == columns["tools"]
        pair = {"prompt": [user("hi")], "chosen": [calling], "rejected": [assistant("no")], **columns}
        pairs = preferences_from_records(load_columns([pair]), tokenizer)
        assert "# Tools" in pairs.chosen.prompt_texts(tokenizer)[0]
        assert '"add"' in pairs.chosen.completion_texts(tokenizer)[0]

    def test_a_template_that_takes_none_is_named(self) -> None:
        row = {"messages": [user("hi"), assistant("yo")], "tools": [TOOL]}
        for read in (episodes_from_records, prompts_from_records):
            with pytest.warns(UserWarning, match="the chat template does not use tools") as said:
                read(
                    load_columns([row, {**row, "messages": [user("a"), assistant("b")]}]),
                    chat_tokenizer("chatml"),
                )
            assert len(said) == 1

    @pytest.mark.parametrize(
        ("columns", "error", "message"),
        [
            ({"tools": "[{"}, ValueError, r"tools must be valid JSON, got '\[\{'"),
            ({"tools": ["add"]}, TypeError, r"tools\[0\] must be a JSON schema \(a dict\), got 'add'"),
            ({"tools": {"a": 1}}, TypeError, "tools must be a list of JSON schemas, got dict"),
            ({"chat_template_kwargs": 3}, TypeError, "chat_template_kwargs must be a dict, got int"),
            ({"chat_template_kwargs": {"tokenize": True}}, ValueError, r"must not hold \['tokenize'\]"),
        ],
    )
    def test_bad_columns(self, columns: dict[str, Any], error: type[Exception], message: str) -> None:
        row = {"messages": [user("hi"), assistant("yo")], **columns}
        for read in (episodes_from_records, prompts_from_records):
            with pytest.raises(error, match=message):
                read(load_columns([row]), chat_tokenizer("qwen-3"))

    def test_messages_that_call(self) -> None:
        call = {"function": {"name": "add", "arguments": "{}"}}
        calling = {"role": "assistant", "tool_calls": [call], "content": None, "name": None}
        assert check_messages([calling], "row") == [
            {"role": "assistant", "tool_calls": [call], "content": None}
        ]
        with pytest.raises(ValueError, match=r"row\[0\] has no 'content'"):
            check_messages([{"role": "assistant", "content": None, "tool_calls": []}], "row")
        with pytest.raises(TypeError, match=r"row\[0\]\['tool_calls'\] must be a list, got str"):
            check_messages([{"role": "assistant", "tool_calls": "add"}], "row")
        for broken, error in (
            ({"name": "add"}, r"\['tool_calls'\]\[0\] beside content None has no 'arguments'; it has 'name'"),
            ({"function": {"arguments": {}}}, r"\[0\] beside content None has no 'name'; it has 'arguments'"),
            ("add", r"\[0\] must be a dict with 'name' and 'arguments', got 'add'"),
            ({"name": "add", "arguments": 3}, r"\[0\]\['arguments'\] must be Mapping or str, got 3"),
        ):
            with pytest.raises((TypeError, ValueError), match=error):
                check_messages([{"role": "assistant", "content": None, "tool_calls": [broken]}], "row")


class TestRepeatedPrompts:
    def test_messages_at_the_front_of_both_sides_are_recognised(self) -> None:
        tokenizer = chat_tokenizer("chatml")
        system = {"role": "system", "content": "the dog"}
        apart = {"prompt": [system, user("hi")], "chosen": [assistant("yo")], "rejected": [assistant("no")]}
        forms = (
            {
                **apart,
                "chosen": [*apart["prompt"], *apart["chosen"]],
                "rejected": [user("hi"), assistant("no")],
            },
            {**apart, "chosen": [user("hi"), assistant("yo")]},
        )
        expected = preferences_from_records(load_columns([apart]), tokenizer)
        for form in forms:
            pairs = preferences_from_records(load_columns([form]), tokenizer)
            assert pairs.chosen.input_ids.tolist() == expected.chosen.input_ids.tolist()
            assert pairs.rejected.input_ids.tolist() == expected.rejected.input_ids.tolist()
        whole = {"prompt": [user("hi")], "completion": [user("hi"), assistant("yo")]}
        episodes = episodes_from_records(load_columns([whole]), tokenizer)
        assert episodes.prompt_texts(tokenizer)[0].count("hi") == 1

    def test_a_text_prompt_beside_whole_conversations(self) -> None:
        """The prompt as text, the sides as messages, as many preference sets on the hub have them."""
        tokenizer = chat_tokenizer("chatml")
        row = {
            "prompt": "hi",
            "chosen": [user("hi"), assistant("yo")],
            "rejected": [user("hi"), assistant("no")],
        }
        pairs = preferences_from_records(load_columns([row]), tokenizer)
        assert pairs.chosen.prompt_texts(tokenizer)[0].count("hi") == 1
        assert pairs.chosen.completion_texts(tokenizer) == ["yo"]

    def test_texts_that_hold_their_prompt_are_counted(self) -> None:
        tokenizer = chat_tokenizer("chatml")
        prompt = "\n\nhuman: hi\n\nassistant:"
        rows = [
            {"prompt": prompt, "chosen": prompt + " yo", "rejected": prompt + " no"},
            {"prompt": prompt + "?", "chosen": " yo", "rejected": " no"},
        ]
        with pytest.warns(UserWarning, match="in 1 of 2 records the completion begins with the text of the"):
            preferences_from_records(load_columns(rows), tokenizer)
        with pytest.warns(UserWarning, match="in 1 of 1 records the completion begins with the text of the"):
            preferences_from_records(
                load_columns([{"prompt": "hi", "chosen": "hi yo", "rejected": "hi no"}]), tokenizer
            )
        with pytest.warns(UserWarning, match="in 1 of 1 records the completion begins with the text of the"):
            episodes_from_records(load_columns([{"prompt": prompt, "completion": prompt + " x"}]), tokenizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            episodes_from_records(load_columns([{"prompt": "a", "completion": "a dog"}]), tokenizer)

    def test_sides_that_become_equal(self) -> None:
        tokenizer = chat_tokenizer("chatml")
        rows = [
            {"prompt": "hi", "chosen": "the the the dog", "rejected": "the the the fox"},
            {"prompt": "hi", "chosen": "x", "rejected": "y"},
        ]
        with pytest.warns(UserWarning, match="the same tokens in 1 of 2 pairs"):
            pairs = preferences_from_records(load_columns(rows), tokenizer, max_length=4)
        assert len(pairs) == 2
        with pytest.raises(ValueError, match=r"the same tokens in 1 of 1 pairs .* nothing to learn"):
            preferences_from_records(load_columns(rows[:1]), tokenizer, max_length=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            preferences_from_records(load_columns(rows), tokenizer)


def test_a_refusal_of_the_template_names_the_record() -> None:
    messages = [{"role": "system", "content": "x"}, user("hi"), assistant("yo")]
    records = load_columns([{"messages": messages}])
    with pytest.raises(ValueError, match=r"row 0: .*template does not accept .*System role not supported"):
        episodes_from_records(records, chat_tokenizer("gemma"))
    with pytest.raises(
        ValueError, match=r"prompts\[0\]: .*template does not accept .*System role not supported"
    ):
        PromptSet.from_texts([messages[:2]], chat_tokenizer("gemma"), chat_template=True)


def test_a_template_that_takes_all_the_room_is_cut_with_a_warning() -> None:
    tokenizer = chat_tokenizer("llama-3")
    with pytest.warns(UserWarning, match="no room for the messages of 2 of 2 prompts"):
        prompts = PromptSet.from_texts(
            ["the dog", "the fox"], tokenizer, chat_template=True, max_prompt_tokens=14
        )
    text = tokenizer.decode(ids_of(prompts))
    assert text.startswith("<|begin_of_text|>") and len(ids_of(prompts)) == 14
    assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_rankings_of_messages() -> None:
    tokenizer = chat_tokenizer("qwen-3")
    row = {"prompt": [user("hi")], "completions": [[assistant("yo")], [user("hi"), assistant("no")]]}
    episodes = as_episodes([{**row, "tools": [TOOL], "topic": "t"}], tokenizer)
    extras = {"tools": [TOOL], "topic": "t", "prompt_messages": [user("hi")]}
    assert episodes.extras == {name: [value, value] for name, value in extras.items()}
    assert episodes.returns.tolist() == [1.0, -1.0]
    prompts = episodes.prompt_texts(tokenizer)
    assert prompts[0] == prompts[1] and prompts[0].count("hi") == 1 and "# Tools" in prompts[0]
    assert [text[-2:] for text in episodes.completion_texts(tokenizer)] == ["yo", "no"]


def test_rankings_keep_the_other_columns() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "completions": ["b", "c"]}]
    rows.append({"prompt": "c", "completions": ["a", "b", "cc"], "topic": "t", "reward": 5.0})
    episodes = as_episodes(rows, letter_tokenizer("abc"))
    assert episodes.extras == {"topic": [None, None, "t", "t", "t"]}
    assert episodes.returns.tolist() == [1.0, -1.0, 1.0, 0.0, -1.0]
