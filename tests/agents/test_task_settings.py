"""Settings and start that tasks have for agents: read by all entry points, after the user's own."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import textenv
from benchmarks import probes, random_walks
from tests.helpers import models
from tests.helpers.models import TOKENIZER
from textenv.agents.base.callbacks import Callback
from textenv.agents.base.equal_returns import EqualReturns
from textenv.agents.base.registry import BUILTIN, get_agent
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.cli.main import main
from textenv.agents.ppo import PPOConfig
from textenv.agents.settings.base import Config
from textenv.agents.study.cells import agent_setup, task_setup
from textenv.agents.study.config import StudyConfig
from textenv.agents.study.plan import identity, plan
from textenv.agents.study.runner import run_study
from textenv.agents.train_setup.task_settings import task_settings, unsaid
from textenv.agents.train_setup.task_start import make_start, start_config
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks import TaskData, make_task, register_task, registry

ROOT = Path(__file__).parents[2]
TASKS = ("random-walks", *probes.PROBES)
QUICK: dict[str, Any] = {"iterations": 1, "episodes_per_iteration": 16, "eval_episodes": 8}


def _model() -> Any:
    return models.tiny(width=16, positions=16)


def _demonstrations() -> EpisodeBatch:
    return EpisodeBatch.from_texts(["a", "b"], ["bb", "cc"], TOKENIZER, rewards=[1.0, 0.0])


@pytest.fixture
def tiny() -> Iterator[str]:
    """A task of one's own with settings for PPO and a start."""

    @register_task(
        "tiny-for-test",
        settings={
            "ppo": {
                "settings": {"learning_rate": 0.5, "gamma": 0.75, "iterations": 3, "minibatches": 1},
                "start": {"steps": 2, "learning_rate": 0.01},
                "num_envs": 5,
            },
            "sft": {"cannot": "it clones both texts alike"},
        },
    )
    def build(split: str = "train") -> TaskData:
        """Settings of one's own."""
        return TaskData(
            prompts=["a", "b"],
            tokenizer=TOKENIZER,
            rewards=["length"],
            max_new_tokens=3,
            model_config=_model,
            make_demonstrations=_demonstrations,
        )

    yield "tiny-for-test"
    del registry._TASKS["tiny-for-test"]


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class AtStart(Callback):
    """Keeps the weights that an agent begins with, and those of its reference."""

    def on_start(self, agent: Any) -> None:
        self.own = weights(agent.policy.model).clone()
        reference = agent.reference
        self.reference = (
            None
            if reference is None
            else torch.cat([value.flatten() for value in reference.state_dict().values()])
        )


# -- the data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_agent_has_settings_that_its_class_takes_and_that_all_have_an_effect(task: str) -> None:
    for agent in BUILTIN:
        found = make_task(task).settings(agent)
        config = get_agent(agent).config_class(**found["settings"])
        assert config.idle() == {} and config.given().keys() == found["settings"].keys()
        assert json.loads(json.dumps(found["settings"])) is not None
        if "start" in found:
            assert start_config(found["start"], True) is not None
    assert make_task(task).settings("unknown") == {} == make_task("reviews").settings("ppo")


def test_settings_are_a_copy_and_their_keys_are_checked() -> None:
    task = make_task("random-walks")
    task.settings("ppo")["settings"]["gamma"] = 0.1
    assert task.settings("ppo")["settings"]["gamma"] == 0.95
    with pytest.raises(ValueError, match=r"task 'wrong': unknown key 'setings' of 'ppo'; .*settings"):
        register_task("wrong", lambda split: None, settings={"ppo": {"setings": {}}})  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="settings must be a dict of agent name to dict, got 3"):
        register_task("wrong", lambda split: None, settings=3)  # type: ignore[call-overload]


def test_benchmarks_have_the_tasks_settings_and_a_longer_pretraining_of_walks() -> None:
    for agent in random_walks.AGENTS:
        assert random_walks.settings_of(agent) == make_task("random-walks").settings(agent)["settings"]
    changed = random_walks.settings_of("ppo", {"total_episodes": 8400, "gamma": 1.0})
    assert changed["gamma"] == 1.0 and "iterations" not in changed
    assert random_walks.pretraining(3).to_dict() == {
        **start_config(make_task("random-walks").settings("ppo")["start"], True, 3).to_dict(),  # type: ignore[union-attr]
        "steps": 1000,
    }
    note = random_walks.starts_note(["ppo", "dpo", "ilql", "sft"])
    assert note == (
        "Start after next-token pretraining on the walks: ppo, dpo. Start from random weights: ilql, sft."
    )


# -- what was given ------------------------------------------------------------------------------------------


def test_settings_remember_which_of_them_were_given() -> None:
    config = PPOConfig(learning_rate=3e-6)  # as its default
    assert config.given() == {"learning_rate": 3e-6} and PPOConfig().given() == {}
    assert config.replace(gamma=0.9).given() == {"learning_rate": 3e-6, "gamma": 0.9}
    assert config == PPOConfig()
    assert PPOConfig.from_dict(config.to_dict()).given().keys() == config.to_dict().keys()
    filled = PPOConfig.with_defaults({"gamma": 1.0}, {"gamma": 0.5, "epochs": 2, "whiten_min_std": 0.3})
    assert (filled.gamma, filled.epochs, filled.given()) == (1.0, 2, {"gamma": 1.0})
    assert not filled.saved
    # A default that another setting leaves without effect is nobody's mistake; a value that was given is.
    assert not PPOConfig.with_defaults(
        {"whiten_advantages": False}, {"whiten_min_std": 0.3}
    ).whiten_advantages
    with pytest.raises(ValueError, match="whiten_min_std has no effect without whiten_advantages"):
        PPOConfig.with_defaults({"whiten_min_std": 0.3}, {"whiten_advantages": False})
    with pytest.raises(ValueError, match="PPOConfig has no setting 'gama'"):
        Config.with_defaults.__func__(PPOConfig, {}, {"gama": 1.0})  # type: ignore[attr-defined]


def test_what_was_given_goes_with_copies_and_into_other_processes() -> None:
    study = StudyConfig(agents={"ppo": {}}, tasks={"random-walks": {"start": {"steps": 1000}}})
    for same in (pickle.loads(pickle.dumps(study)), copy.deepcopy(study)):
        assert same == study
        assert task_setup(same, "random-walks").start.to_dict() == random_walks.pretraining().to_dict()


def test_the_length_of_a_run_is_said_once() -> None:
    assert unsaid({"iterations": 20, "gamma": 0.9}, {"total_episodes": 280}) == {"gamma": 0.9}
    assert unsaid({"steps": 20}, {"epochs": 2}) == {} and unsaid({"steps": 20}, {"epochs": None}) == {
        "steps": 20
    }
    walks = task_settings("random-walks", "ppo")
    assert walks.fill("ppo", {"total_episodes": 1400}).num_iterations == 10  # type: ignore[attr-defined]


def test_errors_name_the_settings_that_come_from_the_task() -> None:
    with pytest.raises(ValueError, match="multiple of samples_per_prompt") as caught:
        textenv.train("grpo", task="random-walks", episodes_per_iteration=32)
    assert caught.value.__notes__ == [
        "samples_per_prompt=7 comes from the task settings of random-walks for grpo; give your own value"
    ]


# -- the entry points ----------------------------------------------------------------------------------------


def test_train_takes_the_tasks_settings_for_what_is_not_given(tiny: str, capfd: Any) -> None:
    result = textenv.train("ppo", task=tiny, seed=4, **QUICK)
    config = result.agent.config
    assert (config.learning_rate, config.gamma, config.minibatches) == (0.5, 0.75, 1)  # type: ignore[attr-defined]
    assert result.agent.envs.unwrapped.num_envs == 5
    said = capfd.readouterr().err
    assert (
        "task settings of tiny-for-test for ppo: learning_rate=0.5, gamma=0.75, minibatches=1, num_envs=5; "
        "start: fine-tuning on the task's demonstrations (learning_rate=0.01, steps=2)"
    ) in said


@pytest.mark.parametrize("how", ["override", "object", "mapping"])
def test_in_train_the_users_values_win_even_those_of_the_defaults(tiny: str, how: str, capfd: Any) -> None:
    given = {"learning_rate": PPOConfig().learning_rate, "gamma": 1.0}
    config: Any = {"override": None, "object": PPOConfig(**given), "mapping": given}[how]
    changes = given if how == "override" else {}
    result = textenv.train(
        "ppo", task=tiny, config=config, num_envs=16, start=False, loggers=(), **QUICK, **changes
    )
    own = result.agent.config
    assert (own.learning_rate, own.gamma, own.minibatches) == (3e-6, 1.0, 1)  # type: ignore[attr-defined]
    assert result.agent.envs.unwrapped.num_envs == 16
    assert capfd.readouterr().err == ""


def test_the_command_takes_the_tasks_settings_behind_the_users(
    tiny: str, tmp_path: Path, capsys: Any
) -> None:
    options = [f"--settings.{name}={value}" for name, value in QUICK.items()]
    rest = [f"--task={tiny}", "--loggers=[]", "--settings.report=false", *options]
    assert main(["train", "ppo", *rest, f"--run_dir={tmp_path / 'one'}", "--settings.gamma=1.0"]) == 0
    info = RunFolder(tmp_path / "one").read_info()
    assert (info["config"]["learning_rate"], info["config"]["gamma"], info["num_envs"]) == (0.5, 1.0, 5)
    assert info["start"] == {"learning_rate": 0.01, "steps": 2}
    file = tmp_path / "two.yaml"
    file.write_text(f"agent: ppo\ntask: {tiny}\nstart: {{steps: 1}}\nsettings: {{learning_rate: 3.0e-6}}\n")
    given = ["--config", str(file), *rest[1:], "--num_envs=16", f"--run_dir={tmp_path / 'two'}"]
    assert main(["train", *given]) == 0
    info = RunFolder(tmp_path / "two").read_info()
    assert (info["config"]["learning_rate"], info["config"]["gamma"], info["num_envs"]) == (3e-6, 0.75, 16)
    assert info["start"]["steps"] == 1
    capsys.readouterr()
    assert main(["train", "ppo", f"--task={tiny}", "--settings.total_episodes=256", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["settings"]
    assert (shown["learning_rate"], shown["iterations"], shown["total_episodes"]) == (0.5, None, 256)


def test_a_study_takes_the_tasks_settings_and_the_users_win(tiny: str, tmp_path: Path) -> None:
    agents = {
        "ppo": {"settings": QUICK},
        "mine": {"agent": "ppo", "settings": {**QUICK, "learning_rate": 3e-6}},
    }
    config = StudyConfig(agents=agents, tasks={tiny: {}}, seeds=1, best_of=(), evaluations=1, eval_episodes=8)
    results = run_study(config, tmp_path)
    assert [one["status"] for one in results] == ["done"] * 3, results
    settings = {
        label: json.loads((tmp_path / f"runs/{tiny}/{label}/seed-0/run.json").read_text())["config"]
        for label in agents
    }
    assert (settings["ppo"]["learning_rate"], settings["ppo"]["gamma"]) == (0.5, 0.75)
    assert (settings["mine"]["learning_rate"], settings["mine"]["gamma"]) == (3e-6, 0.75)
    assert (tmp_path / "starts" / tiny / "seed-0" / "start.json").is_file()
    plain = config.replace(task_settings=False)
    assert plain.agents["ppo"].config(0, task=plain.source(tiny)).learning_rate == 3e-6
    assert task_setup(plain, tiny).start is None and task_setup(config, tiny).start is not None


def test_a_studys_runs_are_made_from_what_its_file_and_the_task_say_together() -> None:
    study = StudyConfig.from_dict(yaml.safe_load((ROOT / "configs/study_random_walks.yaml").read_text()))
    walks = make_task("random-walks")
    for spec in plan(study):
        found = identity(study, spec)
        assert found["task"]["start"] == {
            **walks.settings("ppo")["start"],
            "steps": 1000,
        }
        if not spec.is_anchor:
            assert found["agent"]["settings"] == json.loads(
                json.dumps(walks.settings(spec.label)["settings"])
            )
            assert found["agent"].get("start", True) == (spec.label != "ilql")
    left = StudyConfig(agents={"ppo": {}, "ilql": {}}, tasks={"random-walks": {}, "probe-end": {}})
    assert [agent_setup(left, name, "random-walks").start for name in ("ppo", "ilql")] == [True, False]
    assert [agent_setup(left, name, "probe-end").start for name in ("ppo", "ilql")] == [True, True]
    for path in sorted((ROOT / "configs").glob("study_*.yaml")):
        StudyConfig.from_dict(yaml.safe_load(path.read_text()))


# -- the start -----------------------------------------------------------------------------------------------


def test_the_reference_is_the_policy_after_the_start_and_seeds_say_which(tiny: str) -> None:
    def begun(**given: Any) -> AtStart:
        seen = AtStart()
        textenv.train("ppo", task=tiny, loggers=(), callbacks=[seen], kl_coef=0.1, **QUICK, **given)
        return seen

    first = begun()
    data = make_task(tiny).build()
    made = make_start(_model(), data, start_config({"steps": 2, "learning_rate": 0.01}, True), seed=0)
    assert torch.equal(first.own, weights(made.model))
    assert first.reference is not None and torch.equal(
        first.reference.sort().values, begun().reference.sort().values
    )  # type: ignore[union-attr]
    assert not torch.equal(first.own, begun(seed=1).own)
    assert not torch.equal(first.own, begun(start=False).own)


def test_a_model_that_is_given_is_left_as_it_is(tiny: str) -> None:
    seen = AtStart()
    given = make_start(_model(), make_task(tiny).build(), None, seed=7).model
    before = weights(given).clone()
    result = textenv.train("ppo", given, task=tiny, loggers=(), callbacks=[seen], **QUICK)
    assert torch.equal(seen.own, before) and result.agent.config.learning_rate == 0.5
    with pytest.raises(ValueError, match=r"start is for a task's own model, got \{'steps': 1\}"):
        textenv.train("ppo", given, task=tiny, start={"steps": 1})
    with pytest.raises(ValueError, match="start: SFTConfig has no setting 'step'"):
        textenv.train("ppo", task=tiny, start={"step": 1})
    with pytest.raises(TypeError, match="start must be True, False or settings of sft, got 3"):
        textenv.train("ppo", task=tiny, start=3)  # type: ignore[arg-type]


def test_a_resumed_run_has_the_checkpoints_settings_and_is_as_if_uninterrupted(
    tiny: str, tmp_path: Path
) -> None:
    given = {**QUICK, "loggers": (), "kl_coef": 0.1, "report": False, "task": tiny}
    whole = textenv.train("ppo", **{**given, "iterations": 2})
    textenv.train("ppo", **given, run_dir=tmp_path, gamma=0.5)
    again = {**given, "iterations": 2, "run_dir": tmp_path, "resume": True}
    resumed = textenv.train("ppo", **again)
    assert resumed.agent.config.gamma == 0.5  # type: ignore[attr-defined]
    textenv.train("ppo", **given, run_dir=tmp_path / "same")
    same = textenv.train("ppo", **{**again, "run_dir": tmp_path / "same"})
    assert torch.equal(weights(same.agent.policy.model), weights(whole.agent.policy.model))
    with pytest.raises(ValueError, match=r"must keep its settings.*gamma=0.5 \(got 1.0\)"):
        textenv.train("ppo", **again, gamma=1.0)


# -- what can't be learned -----------------------------------------------------------------------------------


def test_an_agent_that_cannot_learn_a_task_says_so_at_the_start(tiny: str) -> None:
    with pytest.warns(UserWarning, match="sft cannot learn tiny-for-test: it clones both texts alike"):
        textenv.train("sft", task=tiny, loggers=(), steps=1, eval_episodes=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="sft cannot learn")
        textenv.train("sft", task=tiny, dataset=_demonstrations(), loggers=(), steps=1, eval_episodes=8)


def test_equal_returns_of_the_first_iterations_are_warned_of(tiny: str) -> None:
    def train(reward: Any) -> None:
        textenv.train("ppo", task=tiny, reward=reward, start=False, loggers=(), **{**QUICK, "iterations": 4})

    with pytest.warns(
        UserWarning, match="all 48 episodes of the first 3 iterations returned 2, .*max_new_tokens"
    ):
        train(lambda completions, **_: [2.0] * len(completions))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="all .* episodes")
        train(lambda completions, **_: [float(i) for i in range(len(completions))])
    watch = EqualReturns()
    episodes = _demonstrations()
    watch.check(episodes, _Plain(), 1, 1)
    assert watch.differ and watch.episodes == 2


class _Plain:
    """Stands for an environment without reward wrappers."""

    unwrapped = None
