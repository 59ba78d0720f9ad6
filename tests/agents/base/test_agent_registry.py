"""Agents by name, and the light package that exports them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import textenv.agents
import textenv.agents.base.registry as registry
from textenv.agents.base.registry import (
    agent_names,
    get_agent,
    get_config_class,
    register_agent,
)
from textenv.agents.make import list_agents, make_agent
from textenv.agents.settings.base import OnlineConfig, field_docs


@dataclass(frozen=True, kw_only=True)
class ToyConfig(OnlineConfig):
    """Settings of a toy."""

    shape: str = "round"
    """Shape of the toy."""


class Toy:
    """A toy agent.

    It does nothing.
    """

    config_class = ToyConfig
    online = True

    def __init__(self, model: Any, *, envs: Any = None, config: ToyConfig | None = None) -> None:
        self.model, self.envs, self.config = model, envs, config or ToyConfig()


@pytest.fixture(autouse=True)
def _no_toy_stays() -> Iterator[None]:
    yield
    registry.AGENTS.pop("toy", None)


def test_settings_are_read_without_the_agent() -> None:
    for name in registry.BUILTIN:
        assert get_config_class(name) is get_agent(name).config_class
    register_agent("toy")(Toy)  # type: ignore[type-var]
    assert get_config_class("toy") is ToyConfig
    with pytest.raises(ValueError, match="unknown agent 'pp0'; known: ppo"):
        get_config_class("pp0")


def test_register_and_make() -> None:
    assert register_agent("toy")(Toy) is Toy
    assert "toy" in agent_names()
    assert get_agent("toy") is get_agent(Toy) is Toy
    agent: Any = make_agent("toy", "model", envs="envs")
    assert (agent.model, agent.envs, agent.config) == ("model", "envs", ToyConfig())
    assert list_agents()["toy"] == "A toy agent."


def test_settings_among_the_arguments_reach_the_config() -> None:
    agent: Any = make_agent(Toy, "model", learning_rate=1e-4, shape="flat")
    assert agent.config == ToyConfig(learning_rate=1e-4, shape="flat")
    base = ToyConfig(iterations=3, shape="square")
    agent = make_agent(Toy, "model", config=base, shape="flat")
    assert agent.config == ToyConfig(iterations=3, shape="flat")
    assert base.shape == "square"
    with pytest.raises(ValueError, match="learning_rate must be in"):
        make_agent(Toy, "model", learning_rate=-1.0)


def test_unknown_names_list_the_nearest_first() -> None:
    with pytest.raises(ValueError, match=r"unknown agent 'pp0'; known: ppo, .*sft"):
        make_agent("pp0", "model")
    with pytest.raises(TypeError, match="takes no argument 'learning_rat'; known: learning_rate, "):
        make_agent(Toy, "model", learning_rat=1e-4)


def test_a_name_has_one_owner() -> None:
    class Other(Toy):
        """Another."""

    register_agent("toy")(Toy)
    register_agent("toy")(Toy)
    with pytest.raises(ValueError, match=r"agent 'toy' is already registered, as .*Toy"):
        register_agent("toy")(Other)
    with pytest.raises(ValueError, match=r"agent 'ppo' is already registered, as textenv\.agents\.ppo:PPO"):
        register_agent("ppo")(Other)


def test_what_is_no_agent_is_refused() -> None:
    class Bare:
        config_class = ToyConfig

    with pytest.raises(
        TypeError, match="agent 'bare' must have the class attribute online, got none on Bare"
    ):
        register_agent("bare")(Bare)  # type: ignore[type-var]


@pytest.mark.parametrize("name", sorted(registry.BUILTIN))
def test_every_built_in_agent_loads_registers_itself_and_documents_its_settings(name: str) -> None:
    cls = get_agent(name)
    assert registry.AGENTS[name] is cls
    assert isinstance(cls.online, bool)
    assert set(field_docs(cls.config_class)) >= {"seed", "learning_rate"}
    cls.config_class()
    assert list_agents()[name].endswith(".")


@pytest.mark.parametrize("name", textenv.agents.__all__)
def test_every_export_is_there(name: str) -> None:
    assert getattr(textenv.agents, name).__name__ == name
    assert name in dir(textenv.agents)


def test_an_unknown_attribute_is_named() -> None:
    with pytest.raises(AttributeError, match=r"textenv\.agents attribute PP0"):
        textenv.agents.PP0  # noqa: B018


def _python(code: str, folder: Any = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )


def test_the_import_is_light() -> None:
    heavy = {"torch", "transformers", "rich", "wandb"}
    assert _python(f"import sys, textenv.agents; print({heavy} & set(sys.modules))").stdout.strip() == "set()"


def test_a_bare_import_says_how_it_is_meant() -> None:
    root = textenv.agents.__path__[0].rsplit("/", 1)[0]
    result = _python("import sys; sys.path.insert(0, '.'); import agents", root)
    assert "this folder is imported as textenv.agents" in result.stderr


def test_every_agent_is_exported_with_its_settings() -> None:
    for name, place in registry.BUILTIN.items():
        cls = get_agent(name)
        for exported in (place.partition(":")[2], cls.config_class.__name__):
            assert exported in textenv.agents.__all__, f"{exported} of {name!r}"
            assert getattr(textenv.agents, exported).__name__ == exported
