"""The one-line `train`: the right environment, data, model and settings reach the agent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PretrainedConfig

import textenv
from tests.helpers.models import TOKENIZER
from textenv import collect
from textenv.agents.base.callbacks import BestCheckpoint
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.settings.base import OfflineConfig, OnlineConfig
from textenv.agents.train_setup.arguments import tokenizer_of
from textenv.agents.training import train
from textenv.episodes.batch import EpisodeBatch
from textenv.scoring import reward_wrappers


class Seeing:
    """Stands for an agent: keeps what it is given and returns itself from ``learn``."""

    config_class = OnlineConfig
    online = True

    def __init__(
        self,
        model: Any,
        *,
        envs: Any = None,
        dataset: Any = None,
        eval_envs: Any = None,
        config: Any = None,
        tokenizer: Any = None,
        callbacks: Any = (),
        loggers: Any = (),
        run_dir: Any = None,
        metric_fn: Any = None,
    ) -> None:
        self.model, self.envs, self.dataset, self.eval_envs = model, envs, dataset, eval_envs
        self.config = config or self.config_class()
        self.tokenizer, self.callbacks, self.loggers = tokenizer, callbacks, loggers
        self.run_dir, self.metric_fn = run_dir, metric_fn

    def learn(self) -> Any:
        return self


class SeeingOffline(Seeing):
    """The same, offline."""

    config_class = OfflineConfig  # type: ignore[assignment]
    online = False


def seen(agent: Any, *args: Any, **kwargs: Any) -> Any:
    return train(agent, *args, **kwargs)


def count_a(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(text.count("a")) for text in completions]


def _play(envs: Any) -> EpisodeBatch:
    return collect(envs, lambda obs, info: envs.action_space.sample() * 0, 2)


def test_it_is_there_from_the_top() -> None:
    assert textenv.train is train


def test_prompts_and_a_function_are_enough() -> None:
    model = SimpleNamespace(tokenizer=TOKENIZER)
    agent = seen(
        Seeing, model, prompts=["ab", "c"], reward=count_a, num_envs=3, env_kwargs={"max_new_tokens": 5}
    )
    base = agent.envs.unwrapped
    assert (agent.model, base.num_envs, base.max_new_tokens, len(base.prompts)) == (model, 3, 5, 2)
    assert _play(agent.envs).returns.tolist() == [5.0, 5.0]
    held = agent.eval_envs.unwrapped
    assert held.prompts is base.prompts, "evaluated on the same prompts, which are not read again"
    assert (held.max_new_tokens, held.shuffle, base.shuffle) == (5, False, True)
    assert agent.loggers == ("rich",)


def test_evaluation_prompts_get_an_environment_of_their_own() -> None:
    agent = seen(
        Seeing,
        "model",
        tokenizer=TOKENIZER,
        prompts=["ab"],
        eval_prompts=["c", "d", "da"],
        reward=[count_a, "length"],
        env_kwargs={"max_new_tokens": 5, "samples_per_prompt": 4},
    )
    train_base, eval_base = agent.envs.unwrapped, agent.eval_envs.unwrapped
    assert (len(train_base.prompts), len(eval_base.prompts)) == (1, 3)
    assert (train_base.samples_per_prompt, eval_base.samples_per_prompt) == (4, 1)
    assert (train_base.shuffle, eval_base.shuffle) == (True, False)
    names = [[w.name for w in reward_wrappers(envs)] for envs in (agent.envs, agent.eval_envs)]
    assert names[0] == names[1]
    assert len(names[0]) == 2


def test_a_task_brings_everything() -> None:
    agent = seen(Seeing, task="random-walks", seed=7, iterations=3, learning_rate=1e-4)
    assert isinstance(agent.model, PretrainedConfig)
    assert agent.config == OnlineConfig(seed=7, iterations=3, learning_rate=1e-4)
    assert agent.eval_envs is not None
    assert agent.eval_envs.unwrapped is not agent.envs.unwrapped
    assert reward_wrappers(agent.envs)
    with_own = seen(Seeing, "model", task="random-walks", reward=[])
    assert with_own.model == "model"
    assert not reward_wrappers(with_own.envs)


@pytest.mark.parametrize("cls", [Seeing, SeeingOffline])
def test_a_task_is_built_once_for_each_split(cls: Any) -> None:
    from textenv.tasks.registry import _TASKS, make_task, register_task

    built: list[str] = []

    @register_task("counted-for-a-test")
    def build(split: str = "train") -> Any:
        """Random walks."""
        built.append(split)
        return make_task("random-walks").build(split)

    try:
        agent = seen(cls, task="counted-for-a-test")
    finally:
        del _TASKS["counted-for-a-test"]
    assert sorted(built) == ["train", "validation"]
    assert isinstance(agent.model, PretrainedConfig)
    if agent.online:
        assert agent.envs.unwrapped.task_data.tokenizer is agent.tokenizer


def test_offline_agents_learn_from_the_tasks_demonstrations_or_their_own_data() -> None:
    agent = seen(SeeingOffline, task="random-walks", steps=3)
    assert isinstance(agent.dataset, EpisodeBatch)
    assert agent.envs is None
    assert agent.eval_envs is not None
    assert agent.config.steps == 3
    own = [{"prompt": "a", "completion": "b"}]
    agent = seen(SeeingOffline, "model", tokenizer=TOKENIZER, dataset=own)
    assert agent.dataset is own
    assert (agent.envs, agent.eval_envs) == (None, None)
    assert agent.tokenizer is TOKENIZER


def test_agents_of_preferences_learn_from_the_tasks_preferences() -> None:
    from textenv.tasks.preferences import PreferencePairs
    from textenv.tasks.registry import _TASKS, register_task
    from textenv.tasks.task import TaskData

    pairs = PreferencePairs(prompts=["ab"], chosen=["c"], rejected=["d"], labels=[0.9])

    @register_task("pairs-for-a-test")
    def build(split: str = "train") -> TaskData:
        """Pairs."""
        return TaskData(
            prompts=["ab"], tokenizer=TOKENIZER, rewards=[], max_new_tokens=2, make_preferences=lambda: pairs
        )

    class OfPairs(SeeingOffline):
        from_preferences = True

    try:
        agent = seen(OfPairs, "model", task="pairs-for-a-test")
        with pytest.raises(ValueError, match="the task 'pairs-for-a-test' has no demonstrations"):
            seen(SeeingOffline, "model", task="pairs-for-a-test")
    finally:
        del _TASKS["pairs-for-a-test"]
    assert agent.tokenizer is TOKENIZER
    assert agent.dataset.label.tolist() == pytest.approx([0.9])


def test_settings_change_the_config_that_was_given() -> None:
    config = OnlineConfig(iterations=9, seed=4)
    agent = seen(Seeing, task="random-walks", config=config, epochs=1)
    assert agent.config == OnlineConfig(iterations=9, seed=4, epochs=1)
    with pytest.raises(TypeError, match="takes no argument 'epoch'; known: epochs, "):
        train(Seeing, task="random-walks", epoch=1)  # type: ignore[arg-type]


def test_a_run_folder_keeps_the_best_and_says_what_it_was(tmp_path: Path) -> None:
    agent = seen(Seeing, task="random-walks", run_dir=tmp_path, callbacks=[print])
    assert agent.callbacks[0] is print
    assert isinstance(agent.callbacks[1], BestCheckpoint)
    info = RunFolder(tmp_path).read_info()
    assert (info["task"], info["num_envs"]) == ("random-walks", 16)
    assert OnlineConfig.from_dict(info["config"]) == agent.config
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds another run"):
        train(Seeing, task="random-walks", run_dir=tmp_path, seed=5)  # type: ignore[arg-type]
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("agent", "kwargs", "message"),
    [
        ("pp0", {}, "unknown agent 'pp0'; known: ppo"),
        (Seeing, {}, "model must be given without a task="),
        (Seeing, {"model": "m"}, r"needs prompts= \(or task=\), got None"),
        (Seeing, {"model": "m", "prompts": ["a"]}, r"needs reward= \(or task=\), got None"),
        (SeeingOffline, {"model": "m"}, r"needs dataset= \(or task=\), got None"),
        (
            Seeing,
            {"model": object(), "prompts": ["a"], "reward": count_a},
            "give tokenizer=: the object does not",
        ),
        (Seeing, {"task": "random-walk"}, "unknown task 'random-walk'"),
    ],
)
def test_what_is_missing_is_named(agent: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(agent, **kwargs)


def test_where_a_tokenizer_is_to_be_had() -> None:
    assert tokenizer_of("gpt2") == "gpt2"
    assert tokenizer_of(Path("folder")) == "folder"
    assert tokenizer_of(SimpleNamespace(tokenizer=TOKENIZER)) is TOKENIZER
    assert tokenizer_of(PretrainedConfig(name_or_path="hub/model")) == "hub/model"
    assert tokenizer_of(SimpleNamespace(config=PretrainedConfig(name_or_path="hub/model"))) == "hub/model"


def test_evaluating_changes_nothing_in_a_real_training() -> None:
    def run(eval_every: int) -> list[dict[str, float]]:
        result = train(
            "ppo",
            task="random-walks",
            loggers=(),
            start=False,
            num_envs=16,
            env_kwargs={"max_new_tokens": 5},
            iterations=2,
            episodes_per_iteration=8,
            minibatches=2,
            epochs=1,
            learning_rate=1e-3,
            eval_every=eval_every,
            eval_episodes=8,
        )
        return result.history

    timed = ("time/", "throughput/", "eval/")
    often, rarely = run(1), run(0)
    assert [any(name.startswith("eval/") for name in row) for row in often] == [True, True]
    assert [any(name.startswith("eval/") for name in row) for row in rarely] == [False, True]
    for row, other in zip(often, rarely, strict=True):
        learnt = [{k: repr(v) for k, v in r.items() if not k.startswith(timed)} for r in (row, other)]
        assert learnt[0] == learnt[1]  # written out, for NaN is not equal to itself


@pytest.mark.parametrize("name", ["grpo", "online-dpo", "rft", "rloo"])
def test_it_makes_an_environment_that_deals_what_the_agent_compares(name: str) -> None:
    result = textenv.train(
        name,
        task="probe-end",
        samples_per_prompt=4,
        iterations=1,
        episodes_per_iteration=16,
        minibatches=1,
        eval_episodes=8,
        loggers=(),
    )
    assert result.agent.envs.unwrapped.samples_per_prompt == 4
    assert result.agent.eval_envs.unwrapped.samples_per_prompt == 1
