"""Every setting of every agent: another value gives other weights, or it keeps them as they are.

Two lists by settings class together hold every field of every agent: ``CHANGES`` and ``KEEPS``. A field
counts where the nearest class in an agent's line of settings classes lists it. It is run for that class on
the agents in ``RUN_ON``: what agents inherit runs through the same lines of code in all of them. Where an
agent has lines of its own for an inherited field, ``ALSO`` and ``ALSO_KEEPS`` run it there, too. A run is two
or three iterations, or three steps, of a model of a thousand weights, and is made once for the same settings.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.base.policy_gradient import PolicyGradientConfig
from textenv.agents.base.registry import agent_names, get_agent
from textenv.agents.best_of_n import BestOfNConfig
from textenv.agents.dpo import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    PreferenceConfig,
    ReferenceConfig,
    SimPOConfig,
)
from textenv.agents.grpo import GRPOConfig
from textenv.agents.ilql import ILQLConfig
from textenv.agents.make import make_agent
from textenv.agents.monte_carlo import MonteCarloConfig
from textenv.agents.nlpo import NLPOConfig
from textenv.agents.online_dpo import OnlineDPOConfig
from textenv.agents.reinforce import ReinforceConfig, ReinforcePlusPlusConfig
from textenv.agents.reward_model import RewardModelConfig
from textenv.agents.rft import RFTConfig
from textenv.agents.rwr import RWRConfig
from textenv.agents.settings.actor_critic import ActorCriticConfig
from textenv.agents.settings.archer import ArcherConfig
from textenv.agents.settings.base import AgentConfig, OfflineConfig, OnlineConfig
from textenv.agents.settings.groups import GroupBaselineConfig
from textenv.agents.settings.preferences import PairConfig
from textenv.agents.settings.sb3 import SB3Config
from textenv.agents.sft import FilteredBCConfig, SFTConfig
from textenv.partners import Partner, Reply

Values = dict[str, Any]
Case = tuple[Any, Values]
"""Another value of a field, and the settings beside which it counts."""
EXACT, CLOSE, REFUSED = "exact", "close", "refused"
"""How a field keeps the weights: bit by bit; up to rounding, in float64; for another value is refused."""

RUN_ON: dict[type, tuple[str, ...]] = {
    AgentConfig: ("reinforce", "sft"),  # online and offline: the loops differ
    OnlineConfig: ("reinforce",),
    OfflineConfig: ("sft",),
    PolicyGradientConfig: ("ppo",),
    ActorCriticConfig: ("ppo",),
    NLPOConfig: ("nlpo",),
    GroupBaselineConfig: ("rloo",),
    GRPOConfig: ("grpo",),
    ReinforceConfig: ("reinforce",),
    ReinforcePlusPlusConfig: ("reinforce++",),
    ArcherConfig: ("archer",),
    RFTConfig: ("rft",),
    OnlineDPOConfig: ("online-dpo",),
    BestOfNConfig: ("best-of-n",),
    SB3Config: ("sb3",),
    SFTConfig: ("sft",),
    FilteredBCConfig: ("filtered-bc",),
    RWRConfig: ("rwr",),
    ILQLConfig: ("ilql",),
    MonteCarloConfig: ("monte-carlo",),
    PreferenceConfig: ("dpo",),
    PairConfig: ("dpo",),
    ReferenceConfig: ("dpo",),
    DPOConfig: ("dpo",),
    KTOConfig: ("kto",),
    SimPOConfig: ("simpo",),
    CPOConfig: ("cpo",),
    RewardModelConfig: ("reward-model",),
}
BASE: dict[str, Values] = {
    "archer": {"critic_steps": 2, "critic_batch_size": 4, "actor_turns": 8},
    "rft": {"epochs": 1, "minibatches": 2, "samples_per_prompt": 4, "improve_steps": 2},
    "online-dpo": {"epochs": 1, "samples_per_prompt": 2},
    "best-of-n": {"n": 4, "eval_episodes": 8, "learning_rate": 3e-6},
    "sb3": {"n_steps": 8},
    "nlpo": {"mask_top_p": 0.5, "mask_min_tokens": 1},
}
ONLINE: Values = {"iterations": 2, "episodes_per_iteration": 16, "epochs": 2, "minibatches": 2}
OFFLINE: Values = {"steps": 3, "batch_size": 4}
PTX: Values = {"dataset": True, "ptx_coef": 0.5}
ADAPTIVE: Values = {"kl_controller": "adaptive", "iterations": 3, "kl_coef": 1.0}
STALE: Values = {"stale": True, "importance_correction": "token"}
WIDE: Values = {"width": 64}
"""bitsandbytes keeps moments in 8 bits for parameters of 4,096 numbers and more."""

CHANGES: dict[type, dict[str, Case]] = {
    AgentConfig: {
        "seed": (1, {}),
        "learning_rate": (2e-2, {}),
        "weight_decay": (0.5, {}),
        "adam_betas": ((0.5, 0.5), {}),
        "adam_eps": (1e-2, {}),
        "optimizer": ("adamw_8bit", WIDE),
        "max_grad_norm": (1e-2, {}),
        "lr_schedule": ("linear", {}),
        "warmup_steps": (2, {}),
        "autocast": ("bfloat16", {}),
    },
    OnlineConfig: {
        "iterations": (3, {}),
        "total_episodes": (48, {"iterations": None}),
        "episodes_per_iteration": (24, {}),
        "epochs": (3, {}),
        "minibatches": (3, {}),
    },
    OfflineConfig: {"steps": (4, {}), "epochs": (2, {"steps": None}), "batch_size": (3, {})},
    PolicyGradientConfig: {
        "gamma": (0.5, {}),
        "discount": ("turn", {"gamma": 0.5}),
        "whiten_advantages": (False, {}),
        "whiten_min_std": (10.0, {}),
        "clip_range": (0.01, {}),
        "clip_range_high": (0.5, {"clip_range": 0.001}),
        "dual_clip": (1.001, {"learning_rate": 5e-2, "epochs": 4, "minibatches": 1}),
        "ratio_level": ("sequence", {}),
        "aggregation": ("sequence-mean", {}),
        "entropy_coef": (0.1, {}),
        "kl_coef": (0.5, {}),
        "kl_placement": ("loss", {}),
        "kl_controller": ("adaptive", ADAPTIVE | {"kl_controller": "fixed"}),
        "kl_target": (1e-9, ADAPTIVE),
        "kl_horizon": (16, ADAPTIVE),
        "score_scale": (True, {}),
        "score_clip": (0.1, {}),
        "stop_at_kl": (1e-9, {}),
        "importance_correction": ("token", STALE | {"importance_correction": "none"}),
        "importance_clip": (1.1, STALE),
        "ptx_coef": (0.1, PTX),
        "ptx_batch_size": (2, PTX),
        "ema_decay": (0.5, {}),
    },
    ActorCriticConfig: {
        "gae_lambda": (0.5, {}),
        "advantage": ("monte-carlo", {}),
        "center_by_prompt": (True, {}),
        "scale_rewards": (True, {}),
        "value_clip_range": (1e-3, {}),
        "value_coef": (1.0, {}),
        "value_model": ("separate", {}),
        "value_head": ("mlp", {}),
        "bootstrap_truncated": (True, {}),
    },
    NLPOConfig: {
        "mask_top_p": (0.8, {}),
        "mask_min_tokens": (5, {}),
        "mask_update_iterations": (1, {"learning_rate": 1e-1}),
    },
    GroupBaselineConfig: {
        "gamma": (0.5, {"advantage": "batch-mean"}),
        "discount": ("turn", {"advantage": "batch-mean", "gamma": 0.5}),
        "advantage": ("batch-mean", {}),
        "samples_per_prompt": (2, {}),
        "whiten_advantages": (True, {}),
    },
    GRPOConfig: {"advantage": ("rloo", {}), "max_rollouts": (3, {"task": "probe-constant"})},
    ReinforceConfig: {"baseline": ("none", {}), "whiten_advantages": (True, {})},
    ReinforcePlusPlusConfig: {"advantage": ("batch-mean", {"whiten_advantages": False})},
    RFTConfig: {
        "episodes_per_iteration": (24, {}),
        "samples_per_prompt": (8, {}),
        "improve_steps": (1, {}),
        "start_percentile": (0.0, {}),
        "end_percentile": (0.3, {"start_percentile": 0.0}),
        "generations_kept": (1, {"start_percentile": 0.0}),
        "deduplicate": (False, {"start_percentile": 0.0}),
        "epochs": (2, {}),
    },
    ArcherConfig: {
        "gamma": (0.5, {"task": "turns", "iterations": 3}),
        "buffer_episodes": (8, {}),
        "critic_steps": (3, {}),
        "critic_batch_size": (3, {}),
        "critic_learning_rate": (3e-3, {}),
        "critic_head": ("linear", {}),
        "target_alpha": (0.5, {}),
        "critic_warmup": (1, {}),
        "actor_turns": (6, {}),
        "epochs": (3, {}),
        "minibatches": (3, {}),
        "token_baseline": (True, {"iterations": 3}),
        "entropy_coef": (0.1, {}),
    },
    OnlineDPOConfig: {
        "epochs": (2, {}),
        "samples_per_prompt": (4, {}),
        "beta": (0.5, {}),
        "loss": ("ipo", {}),
        "label_smoothing": (0.2, {"loss": "cdpo", "label_smoothing": 0.1}),
    },
    SB3Config: {
        "iterations": (3, {}),
        "n_steps": (12, {}),
        "epochs": (3, {}),
        "minibatches": (4, {}),
        "gamma": (0.5, {}),
        "gae_lambda": (0.5, {}),
        "clip_range": (1e-3, {}),
        "whiten_advantages": (False, {}),
        "entropy_coef": (0.1, {}),
        "value_coef": (1.0, {}),
        "kl_coef": (0.5, {}),
        "stop_at_kl": (1e-9, {}),
    },
    SFTConfig: {"completion_only": (False, {})},
    FilteredBCConfig: {"percentile": (0.1, {})},
    RWRConfig: {
        "temperature": (0.3, {}),
        "standardize": (False, {}),
        "baseline": ("prompt", {}),
        "max_weight": (1.0, {}),
    },
    ILQLConfig: {
        "gamma": (0.5, {}),
        "discount": ("turn", {"gamma": 0.5}),
        "expectile": (0.9, {}),
        "cql_coef": (1.0, {}),
        "awac_coef": (0.5, {}),
        "awac_beta": (2.0, {"target_alpha": 1.0}),
        "num_q": (1, {}),
        "head": ("linear", {}),
        "target_alpha": (0.5, {}),
        "target_every": (2, {}),
        "standardize_returns": (True, {}),
    },
    PreferenceConfig: {"beta": (0.5, {}), "max_length": (3, {})},
    PairConfig: {"pairs_per_prompt": (1, {"dataset": "one prompt"})},
    DPOConfig: {
        "loss": ("ipo", {}),
        "label_smoothing": (0.2, {"loss": "cdpo", "label_smoothing": 0.1}),
    },
    KTOConfig: {"desirable_weight": (2.0, {}), "undesirable_weight": (2.0, {})},
    SimPOConfig: {"gamma": (0.5, {})},
    CPOConfig: {"nll_coef": (0.5, {})},
    RewardModelConfig: {
        "pair_coef": (0.5, {}),
        "rating_coef": (0.5, {}),
        "centering_coef": (0.5, {}),
        "heads": (2, {}),
        "append_eos": (True, {}),
        "dropout": (0.5, {}),
        "token_dropout": (0.5, {}),
        "max_length": (3, {}),
    },
}
"""Settings class -> field -> another value, which must change the weights, and the settings beside it."""

KEEPS: dict[type, dict[str, tuple[Any, Values, str]]] = {
    AgentConfig: {
        "max_tokens_per_microbatch": (16, {}, CLOSE),
        "eval_every": (1, {"evaluated": True}, EXACT),
        "eval_episodes": (3, {"evaluated": True}, EXACT),
        "checkpoint_every": (1, {"run_dir": True, "report": False}, EXACT),
        "keep_checkpoints": (1, {"run_dir": True, "report": False, "checkpoint_every": 1}, EXACT),
        "log_every": (2, {}, EXACT),
        "report": (True, {"run_dir": True, "evaluated": True}, EXACT),
    },
    PolicyGradientConfig: {"packing": (True, {}, CLOSE)},
    SB3Config: {"max_tokens_per_microbatch": (16, {}, REFUSED)},
    SFTConfig: {"packing": (True, {}, CLOSE)},
    ReferenceConfig: {"precompute_reference": (True, {}, CLOSE)},
    ILQLConfig: {"decode_beta": (3.0, {}, EXACT), "decode_top_k": (2, {}, EXACT)},
    MonteCarloConfig: {"expectile": (0.7, {}, REFUSED)},
    RewardModelConfig: {"eval_episodes": (3, {}, REFUSED)},
    BestOfNConfig: {
        "n": (2, {"evaluated": True}, EXACT),
        "choose_by": ("probe-end", {"evaluated": True}, EXACT),
        "autocast": ("bfloat16", {}, EXACT),
        **{
            name: (value, {}, REFUSED)
            for name, value in {
                "learning_rate": 1e-2,
                "weight_decay": 0.5,
                "adam_betas": (0.5, 0.5),
                "adam_eps": 1e-2,
                "optimizer": "adamw_8bit",
                "max_grad_norm": 0.5,
                "lr_schedule": "linear",
                "warmup_steps": 1,
                "eval_every": 1,
                "checkpoint_every": 1,
                "log_every": 2,
            }.items()
        },
    },
}
"""Settings class -> field -> another value, the settings beside it, and how the weights must be the same."""

ALSO: list[tuple[str, str, Any, Values]] = [
    ("reinforce", "gamma", 0.5, {}),
    ("reinforce", "baseline", "greedy", {}),
    ("reinforce++", "gamma", 0.5, {}),
    ("monte-carlo", "gamma", 0.5, {}),
    ("monte-carlo", "discount", "turn", {"gamma": 0.5}),
    ("reinforce", "discount", "turn", {"gamma": 0.5}),
    ("reinforce++", "discount", "turn", {"gamma": 0.5}),
    ("ppo", "advantage", "turn-gae", {}),
    ("monte-carlo", "cql_coef", 0.5, {}),
    ("monte-carlo", "awac_beta", 2.0, {}),
    ("monte-carlo", "target_alpha", 0.5, {}),
    ("monte-carlo", "target_every", 2, {}),
    ("nlpo", "kl_coef", 0.5, {}),
    ("grpo", "kl_controller", "adaptive", ADAPTIVE | {"kl_controller": "fixed"}),
    ("grpo", "kl_placement", "reward", {}),
    ("grpo", "aggregation", "dr_grpo", {}),
    ("rloo", "clip_range", 0.2, {}),
    ("online-dpo", "loss", "hinge", {}),
    ("online-dpo", "minibatches", 3, {}),
    ("rft", "minibatches", 3, {"start_percentile": 0.0}),
    ("kto", "beta", 0.5, {}),
    ("orpo", "beta", 0.5, {}),
    ("simpo", "beta", 0.5, {}),
    ("cpo", "beta", 0.5, {}),
    ("dpo", "loss", "hinge", {}),
    ("kto", "max_length", 3, {}),
    ("reward-model", "seed", 1, {}),
    ("a2c", "value_clip_range", 1e-3, {}),
]
"""(agent, field, value, settings beside it): inherited fields that change the weights of this agent, too."""
ALSO_KEEPS: list[tuple[str, str, Any, Values, str]] = [
    ("ppo", "max_tokens_per_microbatch", 16, PTX, CLOSE),
    ("nlpo", "packing", True, {}, CLOSE),
    ("grpo", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("rft", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("online-dpo", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("ilql", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("dpo", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("kto", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("kto", "precompute_reference", True, {}, CLOSE),
    ("orpo", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("reward-model", "max_tokens_per_microbatch", 16, {}, CLOSE),
    ("rwr", "max_tokens_per_microbatch", 16, {}, CLOSE),
]
PAIRS = [
    {"prompt": "ab", "chosen": chosen, "rejected": rejected}
    for chosen, rejected in (("a", "bcd"), ("ccab", "d"), ("bd", "ac"), ("dda", "cb"), ("b", "aad"))
]
REWARDED = [
    {"prompt": prompt, "completion": text, "reward": reward}
    for prompt, text, reward in (
        *(("ab", "a", 0.1), ("ab", "bcd", 1.0), ("ba", "ccab", 0.5), ("ba", "d", -0.4), ("c", "bd", 0.3)),
        *(("c", "dda", 0.8), ("d", "ac", 0.0), ("d", "bbb", 0.7)),
    )
]


@functools.cache
def nearest_list(cls: type, field: str) -> tuple[type, str] | None:
    """The first settings class in a class's line that lists the field, and in which list."""
    tables: dict[str, dict[type, Any]] = {"changes": CHANGES, "keeps": KEEPS}
    for base in cls.__mro__:
        found = [name for name, table in tables.items() if field in table.get(base, {})]
        assert len(found) < 2, f"{base.__name__}.{field} is in both lists"
        if found:
            return base, found[0]
    return None


@pytest.mark.parametrize("name", agent_names())
def test_every_field_is_in_one_of_the_lists(name: str) -> None:
    cls = get_agent(name).config_class
    missing = [spec.name for spec in fields(cls) if nearest_list(cls, spec.name) is None]
    assert missing == [], f"put the settings {missing} of {name} into CHANGES or KEEPS"


def test_the_lists_hold_fields_alone() -> None:
    for table in (CHANGES, KEEPS):
        for cls, cases in table.items():
            assert cases.keys() <= {spec.name for spec in fields(cls)}, cls.__name__
    assert {*CHANGES, *KEEPS} == set(RUN_ON)


class Stale:
    """Turns episodes into those of another policy: their recorded log-probs are moved."""

    def __init__(self, agent: Any) -> None:
        self.collect, agent.collect = agent.collect, self

    def __call__(self) -> Any:
        episodes = self.collect()
        moved = torch.linspace(-0.5, 0.5, episodes.log_probs.numel()).view_as(episodes.log_probs)
        episodes.log_probs = torch.where(episodes.action_mask, episodes.log_probs + moved, 0.0)
        return episodes


def model(width: int, dtype: torch.dtype, *, classifier: bool = False) -> Any:
    config = tiny(width=width)
    if not classifier:
        return config
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    made = tiny(width=width, num_labels=1, resid_pdrop=0.1)
    return AutoModelForSequenceClassification.from_config(made).to(dtype)


def run(name: str, settings: Values, *, double: bool = False) -> dict[str, Tensor]:
    """The weights after a short run with these settings, those of the average where there is one."""
    key = json.dumps({**settings, "double": double}, sort_keys=True)
    return _run(name, key)


@functools.cache
def _run(name: str, key: str) -> dict[str, Tensor]:
    import tempfile

    settings = json.loads(key)
    double, width = settings.pop("double"), settings.pop("width", 8)
    with_data, stale = settings.pop("dataset", False), settings.pop("stale", False)
    evaluated, with_dir = settings.pop("evaluated", False), settings.pop("run_dir", False)
    task = settings.pop("task", "probe-end")
    cls = get_agent(name)
    dtype = torch.float64 if double else torch.float32
    known = {spec.name for spec in fields(cls.config_class)}
    base = {**(ONLINE if cls.online else OFFLINE), "learning_rate": 1e-2, **BASE.get(name, {})}
    config = cls.config_class.from_dict({k: v for k, v in {**base, **settings}.items() if k in known})
    arguments: Values = {"config": config, "policy_kwargs": {"dtype": dtype}}
    group = cls.group_size(config)
    size = {"grpo": 4, "rloo": 4}.get(name, group)
    if cls.online:
        arguments["envs"] = envs(task, size)
    else:
        arguments["tokenizer"] = TOKENIZER
        arguments["dataset"] = REWARDED
        if cls.from_preferences:
            arguments["dataset"] = PAIRS
    if with_data:
        arguments["dataset"] = REWARDED
    if with_data == "one prompt":
        arguments["dataset"] = [{**row, "prompt": "ab"} for row in REWARDED]
    if evaluated and name != "reward-model":
        arguments["eval_envs"] = envs(task, cls.group_size(config, evaluation=True))
    if name == "reward-model":
        arguments["dataset"] = {"pairs": PAIRS, "ratings": REWARDED}
        del arguments["policy_kwargs"]
        if evaluated:
            arguments["eval_dataset"] = {"pairs": PAIRS}
    with tempfile.TemporaryDirectory() as folder:
        if with_dir:
            arguments["run_dir"] = Path(folder) / "run"
        agent: Any = make_agent(name, model(width, dtype, classifier=name == "reward-model"), **arguments)
        if stale:
            Stale(agent)
        agent.learn()
    average = getattr(agent, "average", None)
    if average is not None:
        with average.applied():
            return weights_of(agent)
    return weights_of(agent)


class Counter(Partner):
    """Rewards the letters of each turn."""

    def begin(self, rng: Any) -> str:
        return "a"

    def reply(self, text: str) -> Reply:
        return Reply("b", reward=0.1 * len(text))


def envs(task: str, samples_per_prompt: int) -> Any:
    if task == "turns":
        turns = {"partner": Counter, "max_turns": 3, "max_turn_tokens": 2, "max_length": 16, "rewards": []}
        return gym.make_vec("TextRLHF-v0", num_envs=8, tokenizer=TOKENIZER, **turns)
    return gym.make_vec(
        "TextRLHF-v0", num_envs=8, task=task, max_new_tokens=3, samples_per_prompt=samples_per_prompt
    )


def weights_of(agent: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in agent.policy.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all weights that both have, which are at least the model's, are equal bit by bit."""
    shared = one.keys() & other.keys()
    assert any(name.startswith("model.") for name in shared)
    return all(one[n].shape == other[n].shape and torch.equal(one[n], other[n]) for n in sorted(shared))


def change_cases() -> Iterator[Any]:
    """(agent, field, value, settings beside it)."""
    for cls, cases in CHANGES.items():
        for field, (value, beside) in cases.items():
            for name in RUN_ON[cls]:
                yield pytest.param(name, field, value, beside, id=f"{name}-{field}")
    for name, field, value, beside in ALSO:
        yield pytest.param(name, field, value, beside, id=f"{name}-{field}-{value}")


def keep_cases() -> Iterator[Any]:
    """(agent, field, value, settings beside it, how)."""
    for cls, cases in KEEPS.items():
        for field, (value, beside, how) in cases.items():
            for name in RUN_ON[cls]:
                yield pytest.param(name, field, value, beside, how, id=f"{name}-{field}")
    for name, field, value, beside, how in ALSO_KEEPS:
        yield pytest.param(name, field, value, beside, how, id=f"{name}-{field}-too")


@pytest.mark.parametrize(("name", "field", "value", "beside"), list(change_cases()))
def test_another_value_gives_other_weights(name: str, field: str, value: Any, beside: Values) -> None:
    if value == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    changed = run(name, {**beside, field: value})
    assert all(bool(weight.isfinite().all()) for weight in changed.values())
    assert not same(run(name, beside), changed)


@pytest.mark.parametrize(("name", "field", "value", "beside", "how"), list(keep_cases()))
def test_another_value_gives_the_same_weights(
    name: str, field: str, value: Any, beside: Values, how: str
) -> None:
    if how == REFUSED:
        with pytest.raises(ValueError, match=field):
            get_agent(name).config_class.from_dict({**BASE.get(name, {}), field: value})
        return
    written = {"evaluated", "run_dir", "report", "checkpoint_every"}
    plain = {key: one for key, one in beside.items() if key not in written}
    one = run(name, plain, double=how == CLOSE)
    other = run(name, {**beside, field: value}, double=how == CLOSE)
    assert list(one) == list(other)
    if how == EXACT:
        assert same(one, other)
        return
    for key, weight in one.items():
        scale = float(weight.abs().max()) or 1.0
        assert float((weight - other[key]).abs().max()) <= 1e-9 * scale, key
