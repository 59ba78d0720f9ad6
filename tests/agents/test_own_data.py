"""A model folder and files of one's own: rewards as written, runs as models, what agents are evaluated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import AutoModelForCausalLM

import textenv
from tests.helpers import models
from tests.helpers.models import TOKENIZER, save_tiny
from textenv.agents import LanguagePolicy, evaluate_reward_model
from textenv.agents.cli.main import main
from textenv.agents.evaluation.reward_model import pair_metrics, wilson_interval
from textenv.agents.policies.model_setup import load_causal_lm
from textenv.agents.policies.reward_scorer import Scorer
from textenv.agents.ppo import PPO
from textenv.agents.reward_model import RewardModelAgent
from textenv.agents.rft import RFT
from textenv.agents.sft import SFT
from textenv.agents.train_setup.arguments import divide
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.saved_runs import model_folder
from textenv.rewards.registry import make_reward, register_reward
from textenv.scoring import reward_wrappers
from textenv.tasks.make import make_vec_env
from textenv.tasks.prompts import load_tokenizer
from textenv.tasks.stop_tokens import generation_ends

PAIRS = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("c", "d", "cc", "cd", "dd", "dc")]
SHORT: dict[str, Any] = {"loggers": (), "num_envs": 2, "report": False}


def tiny(**changes: Any) -> Any:
    return AutoModelForCausalLM.from_config(models.tiny(**{"heads": 1, **changes}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, files, and a finished run of SFT and of a reward model."""
    root = tmp_path_factory.mktemp("own")
    save_tiny(root / "lm", heads=1)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (root / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS)
    )
    data = str(root / "pairs.jsonl")
    textenv.train(
        "sft", str(root / "lm"), dataset=data, steps=2, eval_episodes=2, run_dir=root / "sft", **SHORT
    )
    scoring = {"append_eos": True, "max_length": 3, "run_dir": root / "rm", "loggers": (), "report": False}
    textenv.train("reward-model", str(root / "lm"), dataset=data, epochs=2, **scoring)
    return root


# -- rewards as they are written -----------------------------------------------------------------------------


def names(envs: Any) -> list[str]:
    return [wrapper.name for wrapper in reward_wrappers(envs)]


def test_a_name_with_arguments_is_one_reward() -> None:
    for spec in (["regex", {"pattern": "a"}], ("regex", {"pattern": "a"}), {"name": "regex", "pattern": "a"}):
        envs = gym.make_vec("TextRLHF-v0", prompts=["a"], tokenizer=TOKENIZER, rewards=spec)
        assert names(envs) == ["regex"]
        assert envs.spec is not None
        assert envs.spec.kwargs["rewards"] == [["regex", {"pattern": "a"}]]
    two = make_vec_env(
        1, prompts=["a"], tokenizer=TOKENIZER, rewards=["length", {"name": "regex", "pattern": "a"}]
    )
    assert names(two) == ["length", "regex"]
    assert names(make_vec_env(1, prompts=["a"], tokenizer=TOKENIZER, rewards="length")) == ["length"]
    nested = make_reward(["ensemble", {"of": ["regex", {"pattern": "a"}]}])
    assert [term.name for term in nested.terms] == ["regex"]


def test_task_stands_for_the_tasks_own_rewards() -> None:
    own = names(make_vec_env(1, task="probe-end"))
    for spec in ("task", ["task", {}]):
        assert names(make_vec_env(1, task="probe-end", rewards=[spec, "length"])) == [*own, "length"]
    assert names(make_vec_env(1, task="probe-end", rewards="task")) == own
    with pytest.raises(ValueError, match="'task' stands for the task's own rewards, and there are none"):
        make_vec_env(1, prompts=["a"], tokenizer=TOKENIZER, rewards=["task"])
    with pytest.raises(ValueError, match="can only be an item of the rewards"):
        make_reward(["clipped", {"of": "task", "low": 0}])
    with pytest.raises(ValueError, match="can't have the name 'task'"):
        register_reward("task")(len)


# -- a run's folder is a model -------------------------------------------------------------------------------


def test_a_runs_folder_is_a_model_wherever_a_model_is_named(root: Path) -> None:
    run, inside = root / "sft", root / "sft" / "checkpoints" / "step-00000002"
    assert model_folder(run) == inside
    weights = load_causal_lm(inside).state_dict()
    for source in (run, str(run)):
        for found in (
            load_causal_lm(source),
            LanguagePolicy(source).model,
            LanguagePolicy.load(source).model,
        ):
            assert all(torch.equal(found.state_dict()[name], value) for name, value in weights.items())
        assert load_tokenizer(source).get_vocab() == TOKENIZER.get_vocab()
        assert generation_ends(source) == generation_ends(inside)
        make_reward(["kl", {"reference": source}])
        trained = textenv.train(
            "ppo", source, prompts=["c"], reward="length", iterations=1, minibatches=1,
            episodes_per_iteration=2, eval_episodes=2, max_new_tokens=2, learning_rate=0.0, **SHORT,
        )  # fmt: skip
        now = trained.agent.policy.model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in weights.items())


def test_a_reward_model_is_read_as_it_was_trained(root: Path) -> None:
    scorer = Scorer.load(root / "rm")
    assert (scorer.append_eos, scorer.max_length) == (True, 3)
    term = make_reward(["reward-model", {"model": root / "rm"}])
    assert (term.append_eos, term.max_length, term.template) == (True, 3, "{prompt}{completion}")
    texts = (["c", "dd"], ["a", "ab"])
    episodes = EpisodeBatch.from_texts(*texts, TOKENIZER)
    term.bind(make_vec_env(1, prompts=["c"], tokenizer=TOKENIZER).unwrapped)
    expected = scorer.score_texts(["ca", "ddab"])
    torch.testing.assert_close(term.score(episodes), expected, rtol=0, atol=1e-6)
    other = make_reward(["reward-model", {"model": str(root / "rm"), "append_eos": False, "max_length": 9}])
    assert (other.append_eos, other.max_length) == (False, 9)


def test_the_model_of_a_run(tmp_path: Path) -> None:
    def model(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return folder

    assert model_folder("gpt2") == Path("gpt2")
    plain = model(tmp_path / "plain")
    assert model_folder(plain) == plain
    run = tmp_path / "pipeline"
    sft, scores = model(run / "sft" / "model"), model(run / "reward-model" / "model")
    assert (model_folder(run), model_folder(run, scores=True)) == (sft, scores)
    policy = model(run / "rl" / "model")
    assert (model_folder(run), model_folder(run, scores=True), model_folder(run / "sft")) == (
        policy,
        scores,
        sft,
    )
    begun = tmp_path / "begun"
    begun.mkdir()
    assert model_folder(begun) == begun
    (begun / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a run without a usable model: .* no checkpoint yet"):
        model_folder(begun)
    damaged = begun / "checkpoints" / "step-00000001"
    damaged.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"without a usable model: .* holds no files\.json"):
        load_tokenizer(begun)


# -- arguments of train --------------------------------------------------------------------------------------


def test_arguments_go_where_they_belong() -> None:
    given = {"max_new_tokens": 5, "learning_rate": 1.0, "samples_per_prompt": 2, "metric_fn": len, "typo": 1}
    own = {"learning_rate": 1.0, "metric_fn": len, "typo": 1}
    assert divide(PPO, {"shuffle": False}, given) == (
        {"shuffle": False, "max_new_tokens": 5, "samples_per_prompt": 2},
        own,
    )
    # Of an agent that has the setting it is the agent's.
    assert divide(RFT, None, given) == ({"max_new_tokens": 5}, {**own, "samples_per_prompt": 2})
    refused = [
        (PPO, {"num_envs": 3}, {}, TypeError, "num_envs must be given as num_envs=, got it in env_kwargs"),
        (PPO, {"rewards": []}, {}, TypeError, "rewards must be given as reward="),
        (
            PPO,
            {"max_new_token": 3},
            {},
            TypeError,
            "env_kwargs: unknown argument 'max_new_token'; known: max_new_tokens",
        ),
        (PPO, {"shuffle": True}, {"shuffle": True}, TypeError, "shuffle is given twice"),
        (PPO, {}, {"rewards": []}, TypeError, "given as reward=, got rewards="),
        (PPO, {}, {"lora": True}, TypeError, "lora must be given in policy_kwargs"),
        (PPO, {}, {"device": "cpu"}, TypeError, "device must be given in policy_kwargs.* or env_kwargs"),
        (RewardModelAgent, {}, {"max_new_tokens": 3}, ValueError, "max_new_tokens has no effect"),
    ]
    for cls, env_kwargs, more, kind, message in refused:
        with pytest.raises(kind, match=message):
            divide(cls, env_kwargs, more)
    assert divide(SFT, None, {"max_new_tokens": 3}) == ({"max_new_tokens": 3}, {})


def test_prompts_are_not_for_agents_that_learn_from_data(root: Path) -> None:
    with pytest.raises(ValueError, match="learns offline, from dataset=, and takes no prompts="):
        textenv.train("sft", str(root / "lm"), prompts=["a"], dataset=PAIRS)


# -- evaluations ---------------------------------------------------------------------------------------------


def test_training_on_own_prompts_is_evaluated_on_them(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "prompts": ["c", "dd"],
        "reward": ["length", {"coef": 1.0}],
        "eval_episodes": 6,
    }
    options |= {"iterations": 1, "episodes_per_iteration": 2, "minibatches": 1, "run_dir": tmp_path, **SHORT}
    result = textenv.train("ppo", str(root / "lm"), **options)
    assert result.evaluated_on == "the prompts that it was trained on"
    assert len(result.evaluation.episodes) == 6
    assert result.evaluation.metrics["return/mean"] == result.evaluation.metrics["episode/length"]
    # The model has 32 positions: the default budget of 64 tokens does not fit, and is what is left.
    assert result.agent.envs.unwrapped.max_new_tokens == 32 - 2
    assert result.model_dir == model_folder(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    again = textenv.train("ppo", str(root / "lm"), resume=True, **options)
    assert again.evaluation.metrics == result.evaluation.metrics
    held = textenv.train("ppo", str(root / "lm"), eval_prompts=["d"], **{**options, "run_dir": None})
    assert (held.evaluated_on, held.model_dir) == ("eval_prompts", None)


@pytest.mark.parametrize("agent", ["sft", "dpo", "kto", "ilql"])
def test_training_on_own_data_is_evaluated_on_their_prompts(agent: str, root: Path) -> None:
    result = textenv.train(
        agent,
        str(root / "lm"),
        dataset=PAIRS,
        reward=["length", {"coef": 1.0}],
        steps=1,
        eval_episodes=5,
        **SHORT,
    )
    assert result.evaluated_on == "prompts of the data that it was trained on"
    found = result.evaluation
    assert len(found.episodes) == 5
    assert {sample["prompt"] for sample in found.samples} <= {row["prompt"] for row in PAIRS}
    assert found.metrics["return/mean"] == found.metrics["episode/length"]
    assert found.episodes.response_lengths.max() <= 2, "the longest response in the data: a letter and EOS"


def test_evaluations_while_training_on_own_data(root: Path) -> None:
    result = textenv.train(
        "sft", str(root / "lm"), dataset=PAIRS, steps=2, eval_every=1, eval_episodes=3, **SHORT
    )
    assert ["eval/return/mean" in row for row in result.history] == [True, True]


def test_a_reward_model_without_held_out_data_says_so(root: Path) -> None:
    result = textenv.train("reward-model", str(root / "lm"), dataset=PAIRS, epochs=1, loggers=())
    assert result.evaluated_on == "the data that it was trained on"
    assert result.evaluation.metrics["pairs"] == len(PAIRS)


# -- a reward model, measured --------------------------------------------------------------------------------


def test_a_reward_model_is_measured_on_a_file_as_in_its_training(root: Path, tmp_path: Path) -> None:
    held = [{"prompt": "c", "chosen": "ab", "rejected": "d"}, {"prompt": "d", "chosen": "c", "rejected": "a"}]
    result = textenv.train(
        "reward-model", str(root / "lm"), dataset=PAIRS, eval_dataset=held, epochs=2, run_dir=tmp_path / "rm",
        loggers=(), report=False,
    )  # fmt: skip
    assert result.evaluated_on == "eval_dataset"
    found = evaluate_reward_model(result.run_dir, held)
    assert found.metrics == pytest.approx(result.evaluation.metrics, abs=1e-6)
    assert found.samples == result.evaluation.samples
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    out = tmp_path / "found.json"
    command = ["evaluate", str(tmp_path / "rm"), "--dataset", str(tmp_path / "held.jsonl"), "--out", str(out)]
    assert main(command) == 0
    assert json.loads(out.read_text())["metrics"] == pytest.approx(found.metrics)
    with pytest.raises(
        ValueError, match=r"model must be a causal language model.*a reward model cannot generate text"
    ):
        load_causal_lm(tmp_path / "rm")
    with pytest.raises(ValueError, match="model must be a sequence classifier"):
        evaluate_reward_model(root / "sft", held)


def test_what_the_command_says_of_a_reward_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(root / "rm"), "--prompts", str(root / "prompts.jsonl")]) == 2
    assert "--dataset FILE measures a reward model" in capsys.readouterr().err
    assert main(["evaluate", str(root / "rm"), "--dataset", "x", "--episodes", "3"]) == 2
    assert "--episodes has no effect with --dataset" in capsys.readouterr().err


def test_the_interval_of_the_accuracy() -> None:
    # 8 of 10: the textbook values of the Wilson interval.
    assert wilson_interval(0.8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson_interval(1.0, 1) == pytest.approx((0.2065493, 1.0), abs=1e-6)
    assert wilson_interval(0.0, 24)[0] == 0.0, "not 1e-17"
    assert wilson_interval(1.0, 24)[1] == 1.0
    metrics = pair_metrics(torch.tensor([1.0] * 8 + [-1.0] * 2))
    assert (metrics["accuracy/low"], metrics["accuracy/high"]) == pytest.approx(wilson_interval(0.8, 10))
    undecided = pair_metrics(torch.tensor([1.0]), torch.tensor([0.5]))
    assert undecided["accuracy/low"] != undecided["accuracy/low"]
