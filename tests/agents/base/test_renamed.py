"""Old names of hooks: agents of users that define or call them still run, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import textenv.agents.base.registry as registry
from tests.helpers.agents import make, make_envs, rollout, tiny
from textenv.agents.base.agent import Agent
from textenv.agents.base.registry import register_agent
from textenv.agents.base.renamed import RENAMED, pair_names
from textenv.agents.best_of_n import BestOfN
from textenv.agents.make import load_agent
from textenv.agents.ppo import PPO
from textenv.agents.settings.actor_critic import PPOConfig

SETTINGS = PPOConfig(iterations=2, episodes_per_iteration=16, learning_rate=1e-2)


def old_style() -> type[PPO]:
    """A PPO of a user that defines every hook by its old name, and calls the library's by their old names."""

    class Old(PPO):
        calls: list[str]

        def step(self, batch: Any) -> Any:
            self.calls.append("step")
            return super().step(batch)  # type: ignore[misc]

        def describe(self, batch: Any) -> Any:
            return {**super().describe(batch), "mine": 1.0}  # type: ignore[misc]

        def stop_early(self, stats: Mapping[str, float]) -> bool:
            self.calls.append("stop_early")
            return super().stop_early(stats)  # type: ignore[misc]

        def pay(self, episodes: Any) -> None:
            self.calls.append("pay")
            super().pay(episodes)  # type: ignore[misc]

        def play(self, first_ticket: int) -> Any:
            self.calls.append("play")
            return super().play(first_ticket)  # type: ignore[misc]

        def run_loop(self) -> None:
            self.calls.append("run_loop")
            super().run_loop()  # type: ignore[misc]

    return Old


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_agent_with_old_hooks_learns_the_same() -> None:
    agent = old_style()(tiny(), envs=make_envs("ppo"), config=SETTINGS)
    agent.calls = []  # type: ignore[attr-defined]
    history = agent.learn().history
    assert set(agent.calls) == {"step", "stop_early", "pay", "play", "run_loop"}  # type: ignore[attr-defined]
    assert agent.calls.count("step") == 2 * 4 * 4  # type: ignore[attr-defined]
    assert [row.pop("mine") for row in history] == [1.0, 1.0]
    plain = PPO(tiny(), envs=make_envs("ppo"), config=SETTINGS)
    timed = ("time/", "throughput/")
    for one, other in zip(history, plain.learn().history, strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(timed)} == {
            k: v for k, v in other.items() if not k.startswith(timed)
        }


def test_each_old_name_warns_where_it_is_defined_and_where_it_is_called() -> None:
    with pytest.warns(DeprecationWarning) as caught:
        old_style()
    said = [str(warning.message) for warning in caught]
    for old, new in RENAMED.items():
        assert f"Old.{old} is deprecated and will be removed in version 0.3: use {new}" in said
    assert any(
        text.startswith("Old.run_loop is deprecated and will be removed in version 0.3: use train_loop")
        for text in said
    )
    agent: Any = make("ppo")
    batch = rollout(agent)
    with pytest.warns(
        DeprecationWarning,
        match="describe is deprecated and will be removed in version 0.3: use rollout_metrics",
    ):
        found = agent.describe(batch)
    assert found == agent.rollout_metrics(batch)
    with pytest.warns(
        DeprecationWarning, match="step is deprecated and will be removed in version 0.3: use optimizer_step"
    ):
        agent.step(batch)
    assert agent.optimizer_steps == 1


def test_a_loop_of_a_user_that_opens_the_loggers_itself() -> None:
    with pytest.warns(DeprecationWarning, match="run_loop is deprecated and will be removed in version 0.3"):

        class Own(BestOfN):
            def run_loop(self) -> None:
                total = 3
                with self.open_loggers(total) as loggers:
                    while self.iteration < total:
                        self.iteration += 1
                        row = {"x": float(self.iteration)}
                        if self.finish(row, loggers, last=self.iteration == total):
                            break

    config = BestOfN.config_class(n=1)
    agent = Own(tiny(), envs=make_envs("ppo"), config=config)
    with pytest.warns(
        DeprecationWarning, match="finish is deprecated and will be removed in version 0.3: use end_iteration"
    ):
        assert [row["x"] for row in agent.learn().history] == [1.0, 2.0, 3.0]
    stopping = Own(tiny(), envs=make_envs("ppo"), config=config, callbacks=[lambda agent, row: row["x"] == 2])
    with pytest.warns(DeprecationWarning):
        assert len(stopping.learn().history) == 2


def test_a_mixin_and_new_names() -> None:
    class Base:
        def rollout_metrics(self) -> str:
            return "new"

    class Mixin:
        def describe(self) -> str:
            return "old of mixin"

    class Both(Mixin, Base):
        pass

    with pytest.warns(
        DeprecationWarning,
        match="Mixin.describe is deprecated and will be removed in version 0.3: use rollout_metrics",
    ):
        pair_names(Both)
    assert Both().rollout_metrics() == "old of mixin"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair_names(Both)  # again: nothing is left to do

        class Fine(PPO):
            def rollout_metrics(self, batch: Any) -> dict[str, float]:
                return super().rollout_metrics(batch)

    assert Fine.describe is not PPO.describe  # type: ignore[attr-defined]


def test_a_stopped_run_can_learn_on() -> None:
    """``stopped`` is about the run that ended; ``learn`` begins again where it stood."""
    agent = PPO(
        tiny(),
        envs=make_envs("ppo"),
        config=SETTINGS,
        callbacks=[lambda agent, row: agent.iteration == 1],
    )
    assert len(agent.learn().history) == 1 and agent.stopped
    assert [row["episodes"] for row in agent.learn().history] == [32.0] and not agent.stopped
    assert torch.isfinite(agent.parameters[0]).all() and issubclass(PPO, Agent)


def test_state_of_a_user_by_the_old_hooks_is_saved_and_loaded(tmp_path: Any) -> None:
    with pytest.warns(
        DeprecationWarning,
        match="load_state is deprecated and will be removed in version 0.3: use training_state",
    ):

        @register_agent("old-state")
        class Stateful(PPO):
            seen = 0
            table: torch.Tensor | None = None

            def state_values(self) -> dict[str, Any]:
                return {**super().state_values(), "seen": self.seen}  # type: ignore[misc]

            def state_tensors(self) -> dict[str, torch.Tensor]:
                return {**super().state_tensors(), "table": torch.arange(3)}  # type: ignore[misc]

            def load_state(self, values: Any, tensors: Any) -> None:
                super().load_state(values, tensors)  # type: ignore[misc]
                self.seen, self.table = values["seen"], tensors["table"]

    try:
        agent = Stateful(tiny(), envs=make_envs("ppo"), config=SETTINGS)
        agent.seen = 7
        agent.score_std.update(torch.tensor([1.0, 5.0]))
        agent.save(tmp_path / "agent")
        loaded = Stateful.load(tmp_path / "agent", envs=make_envs("ppo"))
        assert loaded.seen == 7 and loaded.table is not None and loaded.table.tolist() == [0, 1, 2]
        assert loaded.score_std.std == agent.score_std.std != 1.0
        assert type(load_agent(tmp_path / "agent", envs=make_envs("ppo"))) is Stateful
    finally:
        registry.AGENTS.pop("old-state")


def test_a_class_loads_without_the_registry(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make("ppo").save(tmp_path / "agent")
    monkeypatch.setattr(registry, "AGENTS", {})
    monkeypatch.setattr(registry, "BUILTIN", {})
    assert type(PPO.load(tmp_path / "agent", envs=make_envs("ppo"))) is PPO
    with pytest.raises(ValueError, match="unknown agent 'ppo'"):
        load_agent(tmp_path / "agent", envs=make_envs("ppo"))
