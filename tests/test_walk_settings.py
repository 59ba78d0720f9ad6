"""The settings of the walks live in ``benchmarks.random_walks``; every copy for readers is the same."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.random_walks import CONFIGS, EPISODES, FINE_TUNED, PRETRAINING, begins_pretrained, starts_note
from textenv.agents.registry import agent_names, get_agent
from textenv.agents.study.config import StudyConfig

ROOT = Path(__file__).parents[1]
OF_A_RUN = {"eval_every", "eval_episodes", "checkpoint_every", "keep_checkpoints", "log_every", "seed"}
"""Settings that say what a run reports and keeps."""


def settings(agent: str, given: dict[str, Any]) -> dict[str, Any]:
    """An agent's settings as they count: with their defaults, and the run's length in iterations."""
    config = get_agent(agent).config_class.from_dict(given)
    found = {name: value for name, value in config.to_dict().items() if name not in OF_A_RUN}
    if get_agent(agent).online:
        found |= {"iterations": config.num_iterations, "total_episodes": None}  # type: ignore[attr-defined]
    return found


def benchmark(agent: str) -> dict[str, Any]:
    own = dict(CONFIGS[agent])
    if get_agent(agent).online and not {"iterations", "total_episodes"} & set(own):
        own["total_episodes"] = EPISODES
    # The benchmark looks at several weights of the advantage, a copy of the settings at the best one.
    return settings(agent, {"decode_beta": 100.0, **own} if agent == "ilql" else own)


PRETRAINED = settings("sft", {"completion_only": False, **PRETRAINING})


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "configs" / name).read_text())


def call_in(script: str, function: str) -> dict[str, Any]:
    """Keyword arguments of a call in an example that are written out."""
    tree = ast.parse((ROOT / "examples" / script).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
            found = {}
            for keyword in node.keywords:
                try:
                    found[str(keyword.arg)] = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
            return found
    raise AssertionError(f"{script} does not call {function}")


def default_of(script: str, option: str) -> Any:
    """The default of an example's option."""
    tree = ast.parse((ROOT / "examples" / script).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(
            isinstance(argument, ast.Constant) and argument.value == option for argument in node.args
        ):
            return next(ast.literal_eval(k.value) for k in node.keywords if k.arg == "default")
    raise AssertionError(f"{script} has no option {option}")


def test_the_study() -> None:
    study = read("study_random_walks.yaml")
    assert set(study["agents"]) <= set(CONFIGS)
    for agent, setup in study["agents"].items():
        assert settings(agent, setup["settings"]) == benchmark(agent), agent
        assert setup.get("start", True) == begins_pretrained(agent), agent
    assert settings("sft", study["tasks"]["random-walks"]["start"]) == PRETRAINED


def test_the_study_of_nlpo() -> None:
    study = read("study_nlpo.yaml")
    assert settings("sft", study["tasks"]["random-walks"]["start"]) == PRETRAINED
    refreshed, frozen = (study["agents"][f"{name} mask"]["settings"] for name in ("refreshed", "frozen"))
    assert settings("nlpo", refreshed) == benchmark("nlpo")
    assert settings("nlpo", frozen) == {**benchmark("nlpo"), "mask_update_iterations": None}


@pytest.mark.parametrize("agent", ["ppo", "ilql"])
def test_the_configurations(agent: str) -> None:
    given = read(f"random_walks_{agent}.yaml")
    assert given["agent"] == agent
    assert settings(agent, given["settings"]) == benchmark(agent)
    assert settings("sft", read("random_walks_sft.yaml")["settings"]) == PRETRAINED


def test_the_example_of_ppo() -> None:
    script = "ppo_random_walks.py"
    own = call_in(script, "textenv.train")
    known = benchmark("ppo").keys() & own.keys()
    given = {name: own[name] for name in known}
    assert settings("ppo", {**given, "total_episodes": default_of(script, "--episodes")}) == benchmark("ppo")
    pretraining = {**call_in(script, "SFTConfig"), "steps": default_of(script, "--pretraining")}
    assert settings("sft", pretraining) == PRETRAINED


def test_the_example_of_ilql() -> None:
    script = "ilql_random_walks.py"
    own = call_in(script, "textenv.make_agent")
    steps = default_of(script, "--steps")
    given = {**own, "steps": steps, "warmup_steps": steps // 10, "decode_beta": 100.0}
    assert settings("ilql", given) == benchmark("ilql")


def test_all_studies_and_settings_are_taken() -> None:
    for agent, own in CONFIGS.items():
        assert get_agent(agent).config_class(**own).idle() == {}
    for path in sorted((ROOT / "configs").glob("study_*.yaml")):
        StudyConfig.from_dict(yaml.safe_load(path.read_text()))


def test_the_note_says_what_each_agent_starts_from() -> None:
    assert starts_note(["ppo", "dpo", "ilql", "sft"]) == (
        "After next-token pretraining on the walks begin: ppo, dpo. From random weights begin: ilql, sft."
    )
    assert starts_note(["ppo"]) == "After next-token pretraining on the walks begin: ppo."
    assert starts_note(["ilql"]) == "From random weights begin: ilql."
    for name in set(agent_names()) & set(CONFIGS):
        assert begins_pretrained(name) == (get_agent(name).online or name in FINE_TUNED)
