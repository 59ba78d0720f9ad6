"""Stop tokens: the model's own ends and the chat template's end of turn, where model and environment meet."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import textenv
from tests.helpers.models import letters
from tests.helpers.template_families import TEMPLATES, chat_tokenizer, turn_ends_with
from textenv.agents.cli.main import main
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.tasks.make import make_env, make_vec_env
from textenv.tasks.stop_tokens import generation_ends, stop_tokens, template_end

LETTERS = letters("abcdef")
END = LETTERS.convert_tokens_to_ids("f")


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model that ends its texts by EOS or f."""
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    made = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    made.generation_config.eos_token_id = [LETTERS.eos_token_id, END]
    return made


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    LETTERS.save_pretrained(path)
    return path


class TestEnds:
    def test_of_models_policies_configs_and_folders(self, model: Any, folder: Path, tmp_path: Path) -> None:
        ends = [LETTERS.eos_token_id, END]
        assert generation_ends(model) == ends
        assert generation_ends(textenv.DecodingPolicy(model)) == ends
        assert generation_ends(folder) == generation_ends(str(folder)) == ends
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [7, 5]}))
        assert generation_ends(tmp_path) == [7, 5]  # no generation_config.json
        assert generation_ends(GPT2Config(eos_token_id=5)) == [5]

    def test_of_an_adapters_base_model(self, folder: Path, tmp_path: Path) -> None:
        named = json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
        (tmp_path / "adapter_config.json").write_text(named)
        assert generation_ends(tmp_path) == generation_ends(str(tmp_path)) == [LETTERS.eos_token_id, END]
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./gone"}))
        assert generation_ends(tmp_path) == []  # loading says what is wrong

    def test_a_default_of_the_class_says_nothing(self, tmp_path: Path) -> None:
        assert generation_ends(LlamaConfig()) == generation_ends(GPT2Config()) == []
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
        assert generation_ends(tmp_path) == []
        assert generation_ends(None) == generation_ends(tmp_path / "missing") == []

    def test_eos_first_and_only_what_the_tokenizer_has(self) -> None:
        assert stop_tokens(LETTERS) == [LETTERS.eos_token_id]
        ends = [END, 10_000, -1, LETTERS.eos_token_id]
        assert stop_tokens(LETTERS, model_ends=ends) == [LETTERS.eos_token_id, END]

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_of_templates(self, name: str) -> None:
        tokenizer = chat_tokenizer(name)
        end = tokenizer.convert_tokens_to_ids(turn_ends_with(name))
        assert template_end(tokenizer) == end
        assert stop_tokens(tokenizer, chat=True) == list(dict.fromkeys([tokenizer.eos_token_id, end]))


def test_environments_of_chats_end_with_the_turn() -> None:
    tokenizer = chat_tokenizer("phi-3")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    expected = {"text": (tokenizer.eos_token_id,), "chat": (tokenizer.eos_token_id, end)}
    message = [{"role": "user", "content": "hi"}]
    for prompts, chat, kind in ((["hi"], False, "text"), (["hi"], True, "chat"), ([message], False, "chat")):
        options = {"prompts": prompts, "chat_template": chat, "tokenizer": tokenizer, "rewards": []}
        for made in (make_vec_env(**options), make_env(**options)):
            assert made.unwrapped.legality.stop_token_ids == expected[kind]
        given = make_vec_env(**options, stop_token_ids=[3], model_stop_token_ids=[4])
        assert given.unwrapped.legality.stop_token_ids == (3,)  # what is said wins


def test_train_and_the_commands_take_the_models_ends(
    model: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        seen.extend(completions)
        return [0.0] * len(completions)

    for source in (model, str(folder)):
        textenv.train(
            "grpo",
            source,
            prompts=["a", "b"],
            reward=reward,
            tokenizer=LETTERS,
            loggers=(),
            iterations=1,
            episodes_per_iteration=32,
            env_kwargs={"max_new_tokens": 12},
        )
    assert any(text.endswith("f") for text in seen) and not any("f" in text[:-1] for text in seen)

    out = tmp_path / "texts.jsonl"
    many = tmp_path / "prompts.jsonl"
    many.write_text("".join(json.dumps({"prompt": letter}) + "\n" for letter in "abcde" * 8))
    options = ["--env.max_new_tokens", "12", "--out", str(out)]
    assert main(["generate", str(folder), "--prompts", str(many), *options]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert any(row["completion"].endswith("f") for row in rows)
    assert not any("f" in row["completion"][:-1] for row in rows)
    ended = [row for row in rows if row["completion"].endswith("f") and len(row["completion"]) < 12]
    assert ended and not any(row["truncated"] for row in ended)


def test_an_agent_says_which_ends_its_environment_does_not_know(model: Any) -> None:
    from textenv.agents import Reinforce, ReinforceConfig

    options = {"prompts": ["a"], "tokenizer": LETTERS, "rewards": ["length"], "max_new_tokens": 4}
    config = ReinforceConfig(iterations=1, episodes_per_iteration=4, minibatches=1)

    def learn(**said: Any) -> list[str]:
        envs = make_vec_env(2, **options, **said)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            Reinforce(model, envs=envs, config=config, loggers=()).learn()
        return [str(each.message) for each in warned if "ends its texts" in str(each.message)]

    assert len(learn()) == 1 and f"by the tokens [{END}]" in learn()[0]
    assert not learn(model_stop_token_ids=generation_ends(model))
    assert not learn(stop_token_ids=[0])


def saved_ends(tokenizer: Any, ends: Any, folder: Path, size: int | None = None) -> Any:
    """What a policy's folder says, where the model's generation config says ``ends``."""
    config = LlamaConfig(
        vocab_size=size or len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    made: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    made.generation_config.eos_token_id = ends
    LanguagePolicy(made, tokenizer=tokenizer).save(folder)
    assert made.generation_config.eos_token_id == ends, "the policy's own is left alone"
    return json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")


def test_a_saved_policy_stops_by_the_end_of_its_template(tmp_path: Path) -> None:
    """The token that ends the assistant's turn, the tokenizer's EOS, and what the model said, each once."""
    chat = chat_tokenizer("phi-3")
    turn, eos = chat.convert_tokens_to_ids("<|end|>"), chat.eos_token_id
    assert turn != eos
    assert saved_ends(chat, 7, tmp_path / "one") == [7, eos, turn]
    assert saved_ends(chat, [eos, 7], tmp_path / "list") == [eos, 7, turn]
    assert saved_ends(chat, [turn, 7, eos], tmp_path / "same") == [turn, 7, eos]
    assert saved_ends(chat, None, tmp_path / "none") == [eos, turn]
    assert generation_ends(tmp_path / "one") == [7, eos, turn]
    loaded = LanguagePolicy.load(tmp_path / "one")
    assert loaded.model.generation_config.eos_token_id == [7, eos, turn]  # type: ignore[union-attr]
    loaded.save(tmp_path / "again")
    assert generation_ends(tmp_path / "again") == [7, eos, turn]


def test_a_saved_policy_of_texts_stops_by_its_tokenizers_eos(tmp_path: Path) -> None:
    default = LlamaConfig().eos_token_id
    assert default not in (LETTERS.eos_token_id, None)
    assert saved_ends(LETTERS, default, tmp_path / "default") == LETTERS.eos_token_id
    assert saved_ends(LETTERS, END, tmp_path / "own") == [END, LETTERS.eos_token_id]
