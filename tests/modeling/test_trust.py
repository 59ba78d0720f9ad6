"""Code that comes with models and tokenizers: nothing asks, nothing runs it, a flag reaches all loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

import textenv
from tests.helpers.models import letters
from textenv.agents.cli.main import main
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.reward_scorer import Scorer
from textenv.modeling.pretrained import is_trusted, load_pretrained, make_pretrained, trusting
from textenv.rewards.registry import make_reward
from textenv.tasks.make import make_vec_env
from textenv.tasks.prompts import load_tokenizer

TOKENIZER = letters("abcdefgh")
CODE = """
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast
def ran():
    open({marker!r}, "a").close()
ran()
class OwnConfig(GPT2Config):
    model_type = "own{name}"
    def __init__(self, *args, **kwargs):
        ran()
        super().__init__(*args, **kwargs)
class OwnLM(GPT2LMHeadModel):
    config_class = OwnConfig
class OwnScorer(GPT2ForSequenceClassification):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    def __init__(self, *args, **kwargs):
        ran()
        super().__init__(*args, **kwargs)
"""


class Folders:
    """Folders of a tiny model; those that come with code say so by writing ``ran``."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran = root, root / "ran"
        self.good = self._made("good", AutoModelForCausalLM)
        self.good_judge = self._made("goodjudge", AutoModelForSequenceClassification, num_labels=1)
        self.model = self._with_code(self._made("model", AutoModelForCausalLM))
        self.judge = self._with_code(self._made("judge", AutoModelForSequenceClassification, num_labels=1))
        self.tokenizer = self._with_code_in_tokenizer(self._made("tokenizer", AutoModelForCausalLM))
        (root / "p.jsonl").write_text('{"prompt": "a"}\n')

    def _made(self, name: str, auto: Any, **given: Any) -> Path:
        config = GPT2Config(
            n_layer=1,
            n_embd=8,
            n_head=1,
            n_positions=32,
            vocab_size=len(TOKENIZER),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            **given,
        )
        auto.from_config(config).save_pretrained(self.root / name)
        TOKENIZER.save_pretrained(self.root / name)
        return self.root / name

    def _write(self, folder: Path) -> None:
        code = CODE.format(marker=str(self.ran), name=folder.name)
        (folder / "own_code.py").write_text(code)

    def _with_code(self, folder: Path) -> Path:
        self._write(folder)
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": f"own{folder.name}"}
        config["auto_map"] = {
            "AutoConfig": "own_code.OwnConfig",
            "AutoModelForCausalLM": "own_code.OwnLM",
            "AutoModelForSequenceClassification": "own_code.OwnScorer",
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def _with_code_in_tokenizer(self, folder: Path) -> Path:
        file = folder / "tokenizer_config.json"
        own = {"tokenizer_class": "OwnTokenizer", "auto_map": {}}
        own["auto_map"] = {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}
        file.write_text(json.dumps(json.loads(file.read_text()) | own))
        return self._with_code(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, folders: Folders) -> Iterator[list[str]]:
    """Questions on the terminal, each answered by "y"; none may come."""
    questions: list[str] = []

    def answer(prompt: str = "") -> str:
        questions.append(prompt)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    folders.ran.unlink(missing_ok=True)
    yield questions
    assert questions == []


def _zero(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def _train(model: Any, reward: Any = _zero, **given: Any) -> Any:
    settings = {"iterations": 1, "episodes_per_iteration": 2, "minibatches": 1, "epochs": 1}
    given = {"env_kwargs": {"max_new_tokens": 2}, "num_envs": 2, "loggers": (), **settings, **given}
    return textenv.train("ppo", model, prompts=["a"], reward=reward, **given)


def _reference(f: Folders) -> None:
    _train(str(f.good), [_zero, ["kl", {"coef": 0.1, "reference": str(f.model)}]])


LOADS: dict[str, Callable[[Folders], Any]] = {
    "a policy": lambda f: LanguagePolicy(str(f.model), tokenizer=TOKENIZER),
    "a policy from a path": lambda f: LanguagePolicy(f.model, tokenizer=TOKENIZER),
    "train's model": lambda f: _train(str(f.model)),
    "train's tokenizer": lambda f: _train(str(f.good), tokenizer=str(f.tokenizer)),
    "the tokenizer of train's model": lambda f: _train(str(f.tokenizer)),
    "a tokenizer": lambda f: load_tokenizer(str(f.tokenizer)),
    "an environment's tokenizer": lambda f: make_vec_env(
        2, prompts=["a"], tokenizer=str(f.tokenizer), max_new_tokens=2, rewards=[]
    ),
    "a scorer": lambda f: Scorer(str(f.judge), tokenizer=TOKENIZER),
    "a scorer's tokenizer": lambda f: Scorer(str(f.tokenizer)),
    "a reward model": lambda f: make_reward(["reward-model", {"model": str(f.judge)}]),
    "a nested reward model": lambda f: make_reward(
        ["weighted", {"of": ["reward-model", {"model": str(f.judge)}], "weight": 2.0}]
    ),
    "a reward model's tokenizer": lambda f: make_reward(
        ["reward-model", {"model": str(f.good_judge), "tokenizer": str(f.tokenizer)}]
    ),
    "a reference of the KL term": _reference,
    "a reward model to train": lambda f: textenv.train(
        "reward-model",
        str(f.judge),
        tokenizer=TOKENIZER,
        dataset=[{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2,
        loggers=(),
        steps=1,
    ),
}


@pytest.mark.parametrize("name", LOADS)
def test_nothing_runs_code_that_came_with_files(name: str, folders: Folders) -> None:
    with pytest.raises((ValueError, OSError), match="the model repository, which is not run by default"):
        LOADS[name](folders)
    assert not folders.ran.exists()


@pytest.mark.parametrize("name", LOADS)
def test_within_trusting_every_load_may(name: str, folders: Folders) -> None:
    with trusting():
        LOADS[name](folders)
    assert folders.ran.exists()


@pytest.mark.parametrize("name", ["train's tokenizer", "the tokenizer of train's model", "train's model"])
def test_what_policy_kwargs_say_holds_for_all_that_train_loads(name: str, folders: Folders) -> None:
    models = {"train's tokenizer": folders.good, "train's model": folders.model}
    given = {"tokenizer": str(folders.tokenizer)} if name == "train's tokenizer" else {}
    _train(str(models.get(name, folders.tokenizer)), policy_kwargs={"trust_remote_code": True}, **given)
    assert folders.ran.exists()
    assert not is_trusted()


def test_a_reward_model_is_reached_by_what_policy_kwargs_say(folders: Folders) -> None:
    reward = [["reward-model", {"model": str(folders.judge)}]]
    _train(str(folders.good), reward, policy_kwargs={"trust_remote_code": True})
    assert folders.ran.exists()


def test_a_config_with_code_is_not_made_a_model(folders: Folders) -> None:
    config = AutoConfig.from_pretrained(folders.good)
    config.auto_map = {"AutoModelForCausalLM": f"{folders.model}--own_code.OwnLM"}
    config.__class__ = type("Foreign", (type(config),), {"model_type": "foreign"})
    with pytest.raises(ValueError, match="code from the model repository"):
        make_pretrained(AutoModelForCausalLM, config)
    assert not folders.ran.exists()


TINY = ["--settings.iterations=1", "--settings.episodes_per_iteration=2", "--settings.minibatches=1"]
TINY += ["--settings.epochs=1", "--settings.report=false", "--loggers=[]", "--env.max_new_tokens=2"]
TINY += ["--num_envs=2"]


def _commands(f: Folders) -> dict[str, list[str]]:
    prompts = f"--prompts={f.root / 'p.jsonl'}"
    judge = f"--reward=[[reward-model, {{model: {f.judge}}}]]"
    few = ["--env.max_new_tokens=2", "--num_envs=2"]
    return {
        "train": ["train", "ppo", f"--model={f.model}", "--reward=length", prompts, *TINY],
        "judge": ["train", "ppo", f"--model={f.good}", judge, prompts, *TINY],
        "generate": ["generate", str(f.model), prompts, *few],
        "evaluate": ["evaluate", str(f.model), prompts, "--reward=length", "--episodes=2", *few],
        "judged": ["evaluate", str(f.good), prompts, judge, "--episodes=2", *few],
        "reference": [
            "evaluate",
            str(f.good),
            prompts,
            "--reward=length",
            f"--reference={f.model}",
            "--episodes=2",
            *few,
        ],
    }


@pytest.mark.parametrize("name", ["train", "judge", "generate", "evaluate", "judged", "reference"])
def test_commands(
    name: str,
    folders: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = _commands(folders)[name]
    assert main(command) == 1
    assert "--trust_remote_code on the command line" in capsys.readouterr().err
    assert not folders.ran.exists()
    assert main([*command, "--trust_remote_code"]) == 0
    assert folders.ran.exists()
    assert not is_trusted()


def test_a_saved_policy_needs_the_word_again(folders: Folders, tmp_path: Path) -> None:
    LanguagePolicy(str(folders.good), tokenizer=TOKENIZER).save(tmp_path)
    folders._write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "ownsaved", "auto_map": {"AutoModelForCausalLM": "own_code.OwnLM"}}
    config["auto_map"]["AutoConfig"] = "own_code.OwnConfig"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own_code.py").write_text(CODE.format(marker=str(folders.ran), name="saved"))
    with pytest.raises(ValueError, match="code from the model repository"):
        LanguagePolicy.load(tmp_path)
    assert not folders.ran.exists()
    LanguagePolicy.load(tmp_path, trust_remote_code=True)
    assert folders.ran.exists()


@pytest.mark.parametrize("value", [None, "true", 1, 0])
def test_it_is_said_by_true_or_false(value: Any, folders: Folders) -> None:
    with pytest.raises(TypeError, match="trust_remote_code must be True or False, got"):
        LanguagePolicy(str(folders.good), tokenizer=TOKENIZER, trust_remote_code=value)
    with pytest.raises(TypeError, match="trust_remote_code must be True or False, got"), trusting(value):
        pass


def test_blocks_end_with_what_was_before() -> None:
    with trusting():
        with trusting(False):
            assert is_trusted()
        assert is_trusted()
    assert not is_trusted()
    with pytest.raises(RuntimeError), trusting():
        raise RuntimeError
    assert not is_trusted()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "model must be a hub id or a folder, got ''"),
        ("no/such-model", OSError, "model 'no/such-model' can't be loaded"),
        ("./nowhere", OSError, "model './nowhere' can't be loaded"),
    ],
)
def test_what_can_not_be_loaded_is_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_pretrained(AutoModelForCausalLM, name, what="model")


def test_damaged_weights_are_named(folders: Folders, tmp_path: Path) -> None:
    LanguagePolicy(str(folders.good), tokenizer=TOKENIZER).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises((ValueError, OSError), match=r"model '.*' can't be loaded"):
        LanguagePolicy.load(tmp_path)


def test_the_actor_of_a_remote_reward_is_given_the_word(folders: Folders) -> None:
    from textenv.rewards.remote import RewardActor

    spec = ["reward-model", {"model": str(folders.judge)}]
    with pytest.raises(ValueError, match="code from the model repository"):
        RewardActor(spec, {}, False, fetch=lambda reference: reference)
    RewardActor(spec, {}, True, fetch=lambda reference: reference)
    assert folders.ran.exists()
