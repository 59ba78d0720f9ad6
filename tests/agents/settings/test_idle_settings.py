"""Settings without effect are refused where a user gives them, and load where they were saved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import GPT2Config

import textenv
import textenv.agents.settings.effects as effects
from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.base.callbacks import BestCheckpoint
from textenv.agents.base.registry import get_agent
from textenv.agents.checkpointing.checkpoint import MANIFEST, TRAINER
from textenv.agents.dpo import DPO, DPOConfig
from textenv.agents.grpo import GRPO, GRPOConfig
from textenv.agents.ilql import ILQL, ILQLConfig, ILQLPolicy
from textenv.agents.losses.advantages import ADVANTAGES, register_advantage
from textenv.agents.make import make_agent
from textenv.agents.nlpo import NLPO, NLPOConfig, NucleusPolicy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.reward_scorer import Scorer
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.reward_model import RewardModelAgent, RewardModelConfig
from textenv.agents.settings.base import Config
from textenv.agents.settings.effects import takes
from textenv.agents.sft import SFT, SFTConfig
from textenv.agents.study.config import StudyConfig
from textenv.agents.study.plan import differences, identity, plan, without_idle
from textenv.episodes.preferences import PreferenceBatch
from textenv.rewards.wrappers import wrap_reward
from textenv.tasks.make import make_vec_env

ONCE = {"epochs": 1, "minibatches": 1}
ROWS = [{"prompt": "ab", "completion": text, "reward": float(len(text))} for text in ("a", "b", "cd", "d")]
PAIRS = [{"prompt": "ab", "chosen": "a", "rejected": "bc"}, {"prompt": "b", "chosen": "cd", "rejected": "a"}]

IDLE: list[tuple[str, dict[str, Any], str]] = [
    # (agent, settings, the one without effect)
    ("ppo", {"whiten_advantages": False, "whiten_min_std": 0.3}, "whiten_min_std"),
    ("rloo", {"whiten_min_std": 0.3}, "whiten_min_std"),
    ("grpo", {"gamma": 0.9}, "gamma"),
    ("grpo", {"gamma": 0.9, "aggregation": "dr_grpo"}, "gamma"),
    ("rloo", {"gamma": 0.9}, "gamma"),
    ("rloo", {"discount": "turn"}, "discount"),
    ("ppo", {"discount": "turn"}, "discount"),
    ("ppo", {"gamma": 0.9, "discount": "turn", "advantage": "turn-gae"}, "discount"),
    ("ilql", {"gamma": 1.0, "discount": "turn"}, "discount"),
    ("ppo", {"advantage": "monte-carlo", "gae_lambda": 0.9}, "gae_lambda"),
    ("a2c", {"advantage": "batch-mean", "bootstrap_truncated": True}, "bootstrap_truncated"),
    ("reinforce++", {"advantage": "rloo", "gamma": 0.9}, "gamma"),
    ("ppo", {"importance_clip": 1.5}, "importance_clip"),
    ("rloo", {"stop_at_kl": 0.1}, "stop_at_kl"),
    ("ppo", {"stop_at_kl": 0.1, **ONCE}, "stop_at_kl"),
    ("ppo", {"clip_range": 0.1, **ONCE}, "clip_range"),
    ("a2c", {"clip_range": 0.1}, "clip_range"),
    ("ppo", {"clip_range_high": 0.3, **ONCE}, "clip_range_high"),
    ("ppo", {"dual_clip": 3.0, **ONCE}, "dual_clip"),
    ("a2c", {"value_clip_range": 0.1}, "value_clip_range"),
    ("rloo", {"clip_range_high": 0.3}, "clip_range_high"),
    ("reinforce", {"dual_clip": 3.0}, "dual_clip"),
    ("a2c", {"ratio_level": "sequence"}, "ratio_level"),
    ("ppo", {"kl_coef": 0.0, "kl_controller": "adaptive"}, "kl_controller"),
    ("grpo", {"kl_coef": 0.0, "kl_controller": "adaptive"}, "kl_controller"),
    ("ppo", {"kl_coef": 0.0, "kl_target": 1.0}, "kl_target"),
    ("ppo", {"kl_coef": 0.0, "kl_horizon": 100}, "kl_horizon"),
    ("ppo", {"kl_coef": 0.0, "kl_placement": "loss"}, "kl_placement"),
    ("ppo", {"kl_target": 1.0}, "kl_target"),
    ("ppo", {"kl_horizon": 100}, "kl_horizon"),
    ("reinforce", {"ptx_batch_size": 8}, "ptx_batch_size"),
    ("reinforce", {"ema_decay": 0.0}, "ema_decay"),
    ("ppo", {"value_coef": 0.0, "value_model": "separate"}, "value_model"),
    ("ppo", {"value_coef": 0.0, "value_clip_range": 0.1}, "value_clip_range"),
    ("ppo", {"gamma": 0.0, "gae_lambda": 0.9}, "gae_lambda"),
    ("a2c", {"gamma": 0.0, "bootstrap_truncated": True}, "bootstrap_truncated"),
    ("ppo", {"value_coef": 0.0, "value_head": "mlp"}, "value_head"),
    ("nlpo", {"mask_top_p": 1.0, "mask_update_iterations": 2}, "mask_update_iterations"),
    ("nlpo", {"mask_top_p": 1.0, "mask_min_tokens": 2}, "mask_min_tokens"),
    ("rft", {"improve_steps": 1, "end_percentile": 0.97}, "end_percentile"),
    ("dpo", {"label_smoothing": 0.1}, "label_smoothing"),
    ("dpo", {"loss": "cdpo"}, "loss"),
    ("online-dpo", {"label_smoothing": 0.1}, "label_smoothing"),
    ("online-dpo", {"loss": "robust"}, "loss"),
    ("ilql", {"awac_coef": 0.0, "awac_beta": 1.0}, "awac_beta"),
    ("monte-carlo", {"awac_coef": 0.0, "awac_beta": 1.0}, "awac_beta"),
    ("reward-model", {"eval_episodes": 3}, "eval_episodes"),
    ("best-of-n", {"learning_rate": 1e-3}, "learning_rate"),
]
EFFECTIVE: list[tuple[str, dict[str, Any]]] = [
    # What switches something off says what happens; what is read by a function of the user's may count.
    ("a2c", {"gamma": 0.9, "value_head": "mlp", "value_model": "separate"}),
    ("ppo", {"value_clip_range": None, **ONCE}),
    ("ppo", {"value_clip_range": 0.1, "epochs": 1, "minibatches": 2}),
    ("ppo", {"value_clip_range": 0.1, "epochs": 2, "minibatches": 1}),
    ("ppo", {"value_clip_range": 0.1, "epochs": 2, "minibatches": 2}),
    ("grpo", {"clip_range": None, **ONCE}),
    ("rloo", {"clip_range": 0.2, "ratio_level": "sequence"}),
    ("grpo", {"kl_controller": "adaptive", "kl_target": 1.0}),
    ("grpo", {"kl_coef": 0.0}),
    ("rloo", {"advantage": "monte-carlo", "gamma": 0.9}),
    ("rft", {"improve_steps": 1, "start_percentile": 0.99}),
    ("dpo", {"loss": "cdpo", "label_smoothing": 0.1}),
    ("sft", {"lr_schedule": "cosine", "steps": 1}),
    ("best-of-n", {"n": 2, "eval_episodes": 8, "seed": 3}),
]


def envs(samples: int = 1, **kwargs: Any) -> Any:
    return gym.make_vec("TextRLHF-v0", num_envs=8, task="probe-end", samples_per_prompt=samples, **kwargs)


@pytest.mark.parametrize(("agent", "settings", "name"), IDLE)
def test_refused_by_name_and_saved_ones_load(agent: str, settings: dict[str, Any], name: str) -> None:
    cls = get_agent(agent).config_class
    message = rf"{name} has no effect .+; got {name}={settings[name]!r}"
    with pytest.raises(ValueError, match=message):
        cls(**settings)
    with pytest.raises(ValueError, match=message):
        cls.from_dict(settings)
    saved = cls.from_saved({**cls().to_dict(), **settings})
    assert saved.saved
    assert {key: getattr(saved, key) for key in settings} == settings
    other = saved.replace(seed=5)
    assert (other.seed, getattr(other, name)) == (5, settings[name])
    with pytest.raises(ValueError, match=message):
        saved.replace(**{name: settings[name]})  # given by the user, now


@pytest.mark.parametrize(("agent", "settings"), EFFECTIVE)
def test_taken(agent: str, settings: dict[str, Any]) -> None:
    config = get_agent(agent).config_class(**settings)
    assert config.idle() == {}
    assert config.given().items() >= {k: v for k, v in settings.items() if k not in ONCE}.items()


def test_what_a_change_leaves_without_effect_is_refused() -> None:
    config = PPOConfig(kl_controller="adaptive", kl_target=3.0)
    with pytest.raises(ValueError, match="kl_controller has no effect with kl_coef=0"):
        config.replace(kl_coef=0.0)


def test_saved_settings_still_have_types_ranges_and_names() -> None:
    with pytest.raises(ValueError, match="gamma must be in"):
        GRPOConfig.from_saved({"gamma": 2.0})
    with pytest.raises(TypeError, match="gamma must be float"):
        GRPOConfig.from_saved({"gamma": "much"})
    with pytest.raises(ValueError, match="no setting 'gama'"):
        GRPOConfig.from_saved({"gama": 1.0})
    assert GRPOConfig.from_saved({"adam_betas": [0.5, 0.6]}) == GRPOConfig(adam_betas=(0.5, 0.6))
    assert not GRPOConfig().replace(seed=2).saved


def test_settings_of_ones_own_say_what_has_no_effect() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Own(Config):
        noise: bool = False
        noise_scale: float = 1.0

        def idle(self) -> effects.Idle:
            return {} if self.noise else self.changed("noise_scale", because="without noise")

    assert Own(noise=True, noise_scale=2.0).noise_scale == 2.0
    with pytest.raises(ValueError, match=r"noise_scale has no effect without noise; got noise_scale=2\.0"):
        Own(noise_scale=2.0)


def test_an_estimator_that_takes_all_keywords_may_use_each() -> None:
    @register_advantage("all-keywords")
    def estimator(rewards: Any, mask: Any, **options: Any) -> Any:
        raise NotImplementedError

    try:
        assert takes(estimator, "gamma")
        assert GRPOConfig(advantage="all-keywords", gamma=0.9).gamma == 0.9
    finally:
        del ADVANTAGES["all-keywords"]


# -- what depends on environment, data and model -------------------------------------------------------------


def test_a_kl_penalty_beside_the_environments_own() -> None:
    from textenv.rewards.kl import KLPenalty

    def made(**settings: Any) -> PPO:
        return PPO(
            tiny(), envs=wrap_reward(envs(), KLPenalty(coef=0.1)), config=PPOConfig(iterations=1, **settings)
        )

    made()
    made(kl_coef=0.0)
    made(kl_placement="loss", kl_coef=0.5)
    with pytest.raises(ValueError, match="kl_coef has no effect where the environment has a KL reward"):
        made(kl_coef=0.5)
    with pytest.raises(ValueError, match="kl_controller has no effect where the environment has a KL reward"):
        made(kl_controller="adaptive")


def test_a_mask_that_holds_every_token() -> None:
    NLPO(tiny(), envs=envs(), config=NLPOConfig(iterations=1))
    with pytest.raises(ValueError, match="mask_top_p has no effect with mask_min_tokens=100 of 7 tokens"):
        NLPO(tiny(), envs=envs(), config=NLPOConfig(iterations=1, mask_top_p=0.5))
    policy = NucleusPolicy(tiny(), tokenizer=TOKENIZER, mask_top_p=0.5, mask_min_tokens=2)
    NLPO(policy, envs=envs(), config=NLPOConfig(mask_top_p=0.5, mask_min_tokens=2))
    with pytest.raises(ValueError, match="mask_top_p has no effect on a NucleusPolicy"):
        NLPO(policy, envs=envs(), config=NLPOConfig(mask_top_p=0.7, mask_min_tokens=2))


def test_heads_and_decoding_that_a_policy_was_given_with() -> None:
    policy = LanguagePolicy(tiny(), tokenizer=TOKENIZER, value_head=True, head_kind="mlp")
    PPO(policy, envs=envs(), config=PPOConfig(value_head="mlp"))
    linear = LanguagePolicy(tiny(), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="value_head has no effect on a policy that was made with head_kind"):
        PPO(linear, envs=envs(), config=PPOConfig(value_head="mlp"))
    shifted = ILQLPolicy(tiny(), tokenizer=TOKENIZER, beta=2.0)
    given = {"dataset": ROWS, "tokenizer": TOKENIZER}
    ILQL(shifted, config=ILQLConfig(decode_beta=2.0), **given)
    for name, value in (("decode_beta", 3.0), ("num_q", 1), ("head", "linear"), ("decode_top_k", 3)):
        with pytest.raises(ValueError, match=f"{name} has no effect on an ILQLPolicy"):
            ILQL(shifted, config=ILQLConfig(**{name: value}), **given)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_critic_that_is_never_trained_values_no_end(critic: Any) -> None:
    config = PPOConfig(value_coef=0.0, bootstrap_truncated=True)
    with pytest.raises(ValueError, match="bootstrap_truncated has no effect with value_coef=0 and a new"):
        PPO(tiny(), envs=envs(), config=config)
    policy = LanguagePolicy(tiny(), tokenizer=TOKENIZER, value_head=critic)
    head: Any = policy.value_head if policy.critic is None else policy.critic.value_head
    assert head.is_zero
    torch.nn.init.ones_(head.projection.last.bias)
    assert not head.is_zero
    saved = {"value_model": critic, "value_coef": 0.0, "bootstrap_truncated": True}
    PPO(policy, envs=envs(), config=PPOConfig.from_saved(saved))
    if critic == "shared":  # value_model="separate" is refused beside value_coef=0
        PPO(policy, envs=envs(), config=config)


def test_lengths_of_data_that_are_tokens() -> None:
    pairs = PreferenceBatch.from_texts(
        [row["prompt"] for row in PAIRS],
        [row["chosen"] for row in PAIRS],
        [row["rejected"] for row in PAIRS],
        TOKENIZER,
    )
    config = DPOConfig(max_length=4)
    DPO(tiny(), dataset=PAIRS, tokenizer=TOKENIZER, config=config)
    with pytest.raises(ValueError, match="max_length has no effect on data that are tokens already"):
        DPO(tiny(), dataset=pairs, tokenizer=TOKENIZER, config=config)
    with pytest.raises(ValueError, match="max_length has no effect on data that are tokens already"):
        reward_model({"pairs": pairs}, max_length=8)


def test_pairs_per_prompt_of_data_that_are_pairs() -> None:
    config = DPOConfig(pairs_per_prompt=4)
    with pytest.raises(ValueError, match="pairs_per_prompt has no effect on data that are pairs already"):
        DPO(tiny(), dataset=PAIRS, tokenizer=TOKENIZER, config=config)
    rows = [{"prompt": "a", "completion": text, "reward": float(i)} for i, text in enumerate("abcd")]
    assert len(DPO(tiny(), dataset=rows, tokenizer=TOKENIZER, config=config).dataset) == 4
    ranked = [{"prompt": "a", "completions": list("abcd")}]
    assert len(DPO(tiny(), dataset=ranked, tokenizer=TOKENIZER, config=config).dataset) == 4


def reward_model(dataset: Any, *, dropout_layers: bool = True, scorer: bool = False, **settings: Any) -> Any:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    sizes = {"vocab_size": len(TOKENIZER), "pad_token_id": TOKENIZER.pad_token_id, "num_labels": 1}
    shape: Any = GPT2Config(n_layer=1, n_embd=8, n_head=2, n_positions=32, **sizes)
    if not dropout_layers:
        shape = LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, **sizes
        )
    model: Any = AutoModelForSequenceClassification.from_config(shape)
    if scorer:
        model = Scorer(model, tokenizer=TOKENIZER)
    config = RewardModelConfig(steps=1, **settings)
    return RewardModelAgent(model, dataset=dataset, tokenizer=TOKENIZER, config=config)


@pytest.mark.parametrize(
    ("agent", "settings", "why"),
    [
        ("reinforce", {}, "with ptx_coef=0, the weight of the loss on it"),
        (
            "rft",
            {"samples_per_prompt": 2},
            "on an agent that learns from the episodes that it generates",
        ),
        ("online-dpo", {"samples_per_prompt": 2}, "on an agent that learns from the episodes"),
        ("best-of-n", {}, "on best-of-n, which trains nothing"),
        ("sb3", {"n_steps": 8, "minibatches": 2}, "on an agent that learns from the episodes"),
    ],
)
def test_data_that_an_online_agent_does_not_learn_from(
    agent: str, settings: dict[str, Any], why: str
) -> None:
    config = get_agent(agent).config_class(**settings)
    envs = make_vec_env(
        2, prompts=["a"], tokenizer=TOKENIZER, max_new_tokens=2, samples_per_prompt=2, rewards=["length"]
    )
    with pytest.raises(ValueError, match=f"^dataset has no effect {why}.*; got 4 rows$"):
        make_agent(agent, tiny(), envs=envs, dataset=ROWS, config=config, tokenizer=TOKENIZER)
    if agent == "reinforce":  # saved settings load whatever they are given with
        saved = get_agent(agent).config_class.from_saved({})
        make_agent(agent, tiny(), envs=envs, dataset=ROWS, config=saved, tokenizer=TOKENIZER)


def test_a_reward_models_losses_without_their_data() -> None:
    rated = [
        {"prompt": row["prompt"], "completion": row["completion"], "reward": row["reward"]} for row in ROWS
    ]
    reward_model(PAIRS, pair_coef=0.5, centering_coef=0.1, dropout=0.1)
    reward_model(rated, rating_coef=0.5)
    for data, name in ((PAIRS, "rating_coef"), (rated, "pair_coef"), (rated, "centering_coef")):
        with pytest.raises(ValueError, match=f"{name} has no effect on data without"):
            reward_model(data, **{name: 0.5})
    with pytest.raises(ValueError, match="dropout has no effect on a model without dropout layers"):
        reward_model(PAIRS, dropout_layers=False, dropout=0.1)
    with pytest.raises(ValueError, match="heads has no effect on a Scorer"):
        reward_model(PAIRS, scorer=True, heads=2)


def test_evaluations_and_checkpoints_that_a_run_cannot_make(tmp_path: Path) -> None:
    def made(run_dir: Any = None, **settings: Any) -> SFT:
        config = SFTConfig(steps=1, batch_size=2, report=False, **settings)
        return SFT(tiny(), dataset=ROWS, tokenizer=TOKENIZER, config=config, run_dir=run_dir)

    with pytest.raises(ValueError, match=r"eval_every has no effect without anything to evaluate on"):
        made(eval_every=1).learn()
    for name in ("checkpoint_every", "keep_checkpoints"):
        with pytest.raises(ValueError, match=f"{name} has no effect without run_dir="):
            made(**{name: 1}).learn()
    made(tmp_path / "run", checkpoint_every=1, keep_checkpoints=1).learn()
    saved = SFTConfig.from_saved({"steps": 1, "batch_size": 2, "eval_every": 1, "checkpoint_every": 1})
    SFT(tiny(), dataset=ROWS, tokenizer=TOKENIZER, config=saved).learn()


# -- runs that were made with such settings ------------------------------------------------------------------

OLD = {"gamma": 0.9, "kl_target": 3.0}
"""Without effect on GRPO."""
NEW = {"episodes_per_iteration": 8, "epochs": 1, "minibatches": 1, "learning_rate": 1e-2, "report": False}


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run of one iteration whose files hold settings that are refused today."""
    folder = tmp_path / "run"
    textenv.train("grpo", task="probe-end", run_dir=folder, loggers=(), iterations=1, **NEW)
    checkpoint = folder / "checkpoints" / "step-00000001"
    trainer = json.loads((checkpoint / TRAINER).read_text())
    trainer["config"] |= OLD
    (checkpoint / TRAINER).write_text(json.dumps(trainer))
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    from hashlib import sha256

    content = (checkpoint / TRAINER).read_bytes()
    manifest[TRAINER] |= {"size": len(content), "sha256": sha256(content).hexdigest()}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_an_old_checkpoint_loads(old_run: Path) -> None:
    agent = GRPO.load(old_run / "checkpoints" / "step-00000001", envs=envs(8), callbacks=[BestCheckpoint()])
    assert (agent.config.gamma, agent.config.kl_target, agent.config.saved) == (0.9, 3.0, True)
    assert agent.iteration == 1


def test_an_old_run_goes_on_with_its_settings(old_run: Path) -> None:
    result = textenv.train("grpo", task="probe-end", run_dir=old_run, loggers=(), resume=True, iterations=2)
    config: Any = result.agent.config
    assert (config.gamma, config.kl_target, config.iterations) == (0.9, 3.0, 2)
    assert {name: getattr(config, name) for name in NEW} == NEW
    assert [row["episodes"] for row in result.history] == [8.0, 16.0]
    again = textenv.train(
        "grpo", task="probe-end", run_dir=old_run, loggers=(), resume="auto", total_episodes=24
    )
    assert again.agent.config.num_iterations == 3  # the length is given anew, the other way of saying it


def test_what_is_given_when_resuming_is_checked_and_must_be_the_runs(old_run: Path) -> None:
    given: dict[str, Any] = {"task": "probe-end", "run_dir": old_run, "loggers": (), "resume": True}
    with pytest.raises(ValueError, match="gamma has no effect"):
        textenv.train("grpo", gamma=0.9, **given)
    with pytest.raises(ValueError, match=r"must keep its settings.*learning_rate=0.01 \(got 0.1\)"):
        textenv.train("grpo", learning_rate=0.1, **given)
    with pytest.raises(ValueError, match="of the agent 'grpo', expected 'rloo'"):
        textenv.train("rloo", **given)


def test_an_agent_resumes_with_saved_settings(old_run: Path) -> None:
    info = json.loads((old_run / "checkpoints" / "step-00000001" / TRAINER).read_text())
    config = GRPOConfig.from_saved(info["config"]).replace(iterations=2)
    from textenv.tasks.registry import make_task

    model = make_task("probe-end").build().model_config()
    agent = make_agent("grpo", model, envs=envs(8), config=config, callbacks=[BestCheckpoint()])
    assert agent.resume(old_run).episodes == 16
    assert torch.isfinite(next(agent.policy.parameters())).all()


def test_runs_of_a_study_from_before_count() -> None:
    def made(**settings: Any) -> dict[str, Any]:
        study = StudyConfig(
            agents={"grpo": {"settings": settings}}, tasks={"probe-end": {}}, seeds=1, task_settings=False
        )
        return identity(study, next(spec for spec in plan(study) if not spec.is_anchor))

    now = made(epochs=2)
    old = made(epochs=2)
    old["agent"]["settings"] |= OLD
    assert differences(without_idle(old), without_idle(now)) == []
    assert differences(without_idle(old), without_idle(made(epochs=3))) == ["agent.settings.epochs: 2, now 3"]
    plain = made()
    old = made()
    old["agent"]["settings"] = dict(OLD)
    assert differences(without_idle(old), without_idle(plain)) == []
    strange = {"agent": {"agent": "no-agent", "settings": {"gamma": 0.9}}}
    assert without_idle(strange) == strange
    assert without_idle({"task": {}}) == {"task": {}}
