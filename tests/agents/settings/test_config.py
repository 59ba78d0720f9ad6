"""Settings: checked at construction, clear errors, plain values in and out, a docstring under every field."""

from __future__ import annotations

import json
import math
import typing
from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

import numpy as np
import pytest
import yaml

from textenv.agents.base.registry import agent_names, get_agent
from textenv.agents.cli.options import EvaluateOptions, GenerateOptions, TrainOptions
from textenv.agents.pipeline.config import PipelineConfig
from textenv.agents.settings.base import AgentConfig, Config, OfflineConfig, OnlineConfig, field_docs
from textenv.agents.settings.engine_rollouts import EngineRollouts
from textenv.agents.settings.env_options import EnvOptions
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.agents.settings.ray_rollouts import RayRollouts


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be >= 1, got 0"),
        ({"learning_rate": -1e-3}, ValueError, r"learning_rate must be in \[0, inf\), got -0.001"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a finite number .*, got nan"),
        ({"learning_rate": 1e300}, ValueError, r"learning_rate must be a finite number .*, got 1e\+300"),
        (
            {"learning_rate": 10**400},
            ValueError,
            r"learning_rate must be below 2\*\*62, got an integer of 1329",
        ),
        ({"adam_betas": (0.9, float("nan"))}, ValueError, "adam_betas must be a finite number .*, got nan"),
        ({"seed": 2**62}, ValueError, r"seed must be below 2\*\*62, got 4611686018427387904"),
        ({"seed": "x" * 10_000}, TypeError, r"seed must be int, got '.{100,300}'$"),
        ({"autocast": ["float32"]}, ValueError, "autocast must be one of 'float32', .*, got "),
        ({"report": 1}, TypeError, "report must be bool, got 1"),
        ({"learning_rate": float("inf")}, ValueError, "learning_rate must be a finite number .*, got inf"),
        ({"learning_rate": "3e-6"}, TypeError, "learning_rate must be float, got '3e-6'; it is text.*3.0e-6"),
        ({"learning_rate": True}, TypeError, "learning_rate must be float, got True"),
        ({"seed": 1.0}, TypeError, "seed must be int, got 1.0"),
        ({"max_grad_norm": "big"}, TypeError, "max_grad_norm must be float or None, got 'big'$"),
        ({"max_grad_norm": 0}, ValueError, r"max_grad_norm must be in \(0, inf\), got 0"),
        ({"adam_betas": (0.9, 1.0)}, ValueError, r"adam_betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        ({"adam_betas": (0.9,)}, TypeError, r"adam_betas must be tuple\[float, float\]"),
        (
            {"lr_schedule": "step"},
            ValueError,
            "lr_schedule must be one of 'constant', 'linear', 'cosine', got 'step'",
        ),
        ({"iterations": 3, "total_episodes": 384}, ValueError, "iterations and total_episodes"),
        (
            {"total_episodes": 2800},
            ValueError,
            r"multiple of episodes_per_iteration \(128\), got 2800.*2688, 2816",
        ),
        ({"total_episodes": 100}, ValueError, "near it: 128$"),
        (
            {"episodes_per_iteration": 3},
            ValueError,
            r"minibatches must be <= episodes_per_iteration \(3\), got 4",
        ),
    ],
)
def test_bad_values_are_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OnlineConfig(**settings)


def test_none_passes_only_where_the_type_allows_it() -> None:
    assert OnlineConfig(max_grad_norm=None).max_grad_norm is None
    with pytest.raises(TypeError, match="epochs must be int, got None"):
        OnlineConfig(epochs=None)  # type: ignore[arg-type]


def test_length_of_a_run() -> None:
    assert OnlineConfig().num_iterations == 100
    assert OnlineConfig(iterations=7).num_iterations == 7
    assert OnlineConfig(total_episodes=2800, episodes_per_iteration=100).num_iterations == 28
    assert OfflineConfig(batch_size=32).total_steps(65) == 3
    assert OfflineConfig(batch_size=32, epochs=2).total_steps(64) == 4
    assert OfflineConfig(steps=10).total_steps(1) == 10
    with pytest.raises(ValueError, match="rows must be >= 1, got 0"):
        OfflineConfig().total_steps(0)
    with pytest.raises(ValueError, match="steps and epochs"):
        OfflineConfig(steps=1, epochs=1)


def test_round_trip_through_json_and_yaml() -> None:
    config = OnlineConfig(learning_rate=3e-4, adam_betas=(0.8, 0.9), iterations=5)
    assert OnlineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert OnlineConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert hash(OnlineConfig.from_dict({"adam_betas": [0.8, 0.9]})) == hash(
        OnlineConfig(adam_betas=(0.8, 0.9))
    )


def test_unknown_settings_name_the_nearest_first() -> None:
    with pytest.raises(
        ValueError, match="OnlineConfig has no setting 'learning_rat'; known: learning_rate, "
    ):
        OnlineConfig.from_dict({"learning_rat": 1e-3})
    with pytest.raises(ValueError, match="no setting 'epoch'; known: epochs, "):
        OnlineConfig().replace(epoch=2)


def test_replace_checks_again_and_leaves_the_old_one() -> None:
    config = OnlineConfig()
    assert config.replace(epochs=2).epochs == 2
    assert config.epochs == 4
    with pytest.raises(ValueError, match="epochs must be >= 1"):
        config.replace(epochs=0)
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("cls", [AgentConfig, OnlineConfig, OfflineConfig])
def test_every_field_is_documented(cls: type[AgentConfig]) -> None:
    docs = field_docs(cls)
    assert list(docs) == [spec.name for spec in fields(cls)]
    assert all(doc.endswith(".") for doc in docs.values())


def test_field_docs_name_what_is_missing_and_the_subclass_wins() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Documented(AgentConfig):
        seed: int = 1
        """Another seed."""

    @dataclass(frozen=True, kw_only=True)
    class Bare(Config):
        width: int = 1

    assert field_docs(Documented)["seed"] == "Another seed."
    with pytest.raises(
        ValueError, match="Bare must have a docstring under every field, got none under width"
    ):
        field_docs(Bare)


def every_config() -> list[type[Config]]:
    found: list[type[Config]] = [get_agent(name).config_class for name in agent_names()]
    return [*found, PipelineConfig, RayRollouts, EngineRollouts, PolicyOptions, EnvOptions, EvaluateOptions,
            GenerateOptions, TrainOptions]  # fmt: skip


@pytest.mark.parametrize("cls", every_config(), ids=lambda cls: cls.__name__)
def test_every_number_of_every_config_has_a_finite_range(cls: type[Config]) -> None:
    hints = typing.get_type_hints(cls)
    for spec in fields(cls):
        parts = typing.get_args(hints[spec.name]) or (hints[spec.name],)
        if not {int, float} & set(parts):
            continue
        pair = typing.get_origin(hints[spec.name]) is tuple
        # -2: no count, coefficient or rate is below -1, and -1 itself is taken by none.
        for value in (math.inf, -math.inf, math.nan, 1e39, -2, -1, True, 2**62, "1", [1], 1j):
            with pytest.raises((TypeError, ValueError), match=rf"\b{spec.name}\b"):
                cls(**{spec.name: (value, value) if pair else value})


def test_numpy_scalars_become_python_ones() -> None:
    made = OnlineConfig(
        seed=np.int64(3),
        learning_rate=np.float32(0.5),
        adam_betas=[np.float64(0.5), 0.25],
        report=np.bool_(False),
    )  # type: ignore[arg-type]
    assert made == OnlineConfig(seed=3, learning_rate=0.5, adam_betas=(0.5, 0.25), report=False)
    assert [type(made.seed), type(made.learning_rate), type(made.report)] == [int, float, bool]
    with pytest.raises(TypeError, match=r"seed must be int, got 3\.0"):
        OnlineConfig(seed=np.float32(3))  # type: ignore[arg-type]


def test_settings_come_by_name() -> None:
    for values in ([1], "seed", 5, None):
        with pytest.raises(TypeError, match="OnlineConfig must be made of settings by name, got"):
            OnlineConfig.from_dict(values)  # type: ignore[arg-type]


def test_a_malformed_range_is_an_error() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Config):
        width: int = 1

        def validate(self) -> None:
            self.check(width="about 1")

    with pytest.raises(ValueError, match=r"must look like '\(0, 1\]' or '>= 1', got 'about 1'"):
        Wrong()
