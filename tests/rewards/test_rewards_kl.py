"""The KL penalty: exactly 0 against the policy itself, the right numbers, its controller and who it asks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import GPT2LMHeadModel

import textenv  # noqa: F401 - registers the environments
from tests.helpers.reward_helpers import (
    COLUMNS,
    PROMPTS,
    TOKENIZER,
    TinyPolicy,
    config,
    episodes,
    language_model,
    random_actions,
    vector_env,
)
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.envs.text_env import TextEnv
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.full_kl import full_kl
from textenv.rewards.kl import KLPenalty, adapted_coefficient
from textenv.rewards.registry import spec_of
from textenv.rewards.wrappers import wrap_reward
from textenv.rollout import collect
from textenv.scoring import RewardError, load_state_dict, reward_wrappers, score_episodes, state_dict, update

ESTIMATORS = ["k1", "k2", "k3", "full"]


def _policy(reference: int | None = 1) -> TinyPolicy:
    policy = TinyPolicy(language_model(0), None if reference is None else language_model(reference))
    policy.attach(vector_env())
    return policy


def _term(policy: TinyPolicy | None = None, **arguments: Any) -> KLPenalty:
    term = KLPenalty(**arguments)
    envs = vector_env()
    envs.bind(policy)
    term.bind(envs)
    return term


def _log_softmax(model: Any, batch: EpisodeBatch, row: int) -> torch.Tensor:
    """(T, V) log-probs at the actions of one episode, from one unpadded row."""
    start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
    logits = model(batch.input_ids[row : row + 1, :end]).logits[0, start - 1 : end - 1]
    return logits.log_softmax(-1).detach()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_policy_against_itself_pays_exactly_nothing(estimator: str) -> None:
    envs = wrap_reward(vector_env(), ["kl", {"estimator": estimator, "max_tokens": 24}])
    policy = _policy(reference=None)
    envs.unwrapped.bind(policy)
    batch = collect(envs, policy, 8, seed=0)
    assert bool((batch.reward_terms["raw/kl"] == 0).all()) and bool((batch.rewards == 0).all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_numbers_against_plain_forwards(estimator: str) -> None:
    policy = _policy()
    term = _term(policy, coef=0.5, estimator=estimator, max_tokens=16)
    batch = score_episodes(episodes(["ab", "fade", "", "cage"]), [term])
    for row in range(len(batch)):
        start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        log_p = _log_softmax(policy.model, batch, row)
        log_q = _log_softmax(policy.reference().model, batch, row)
        d = (log_p - log_q).gather(-1, batch.input_ids[row, start:end].unsqueeze(-1)).squeeze(-1)
        expected = {
            "k1": d,
            "k2": d**2 / 2,
            "k3": (-d).exp() - 1 + d,
            "full": (log_p.exp() * (log_p - log_q)).sum(-1),
        }[estimator]
        torch.testing.assert_close(
            batch.reward_terms["raw/kl"][row, start:end], expected, atol=2e-5, rtol=1e-4
        )
        torch.testing.assert_close(batch.rewards[row, start:end], -0.5 * expected, atol=2e-5, rtol=1e-4)
        assert bool((batch.rewards[row, :start] == 0).all()) and bool((batch.rewards[row, end:] == 0).all())


def test_full_kl_heeds_legality_temperature_and_the_byte_budget() -> None:
    policy = _policy()
    reference = policy.reference()
    batch = episodes(["ab", "fade"])
    legality = vector_env(suppressed_tokens=(8, 10), min_new_tokens=2).legality
    options = {"temperature": 0.7, "legality": legality}
    whole = full_kl(policy, reference, batch, **options)
    torch.testing.assert_close(full_kl(policy, reference, batch, max_bytes=1, **options), whole)
    t = 1  # the second token of "ab": EOS is still illegal
    log_p, log_q = (
        legality.apply(_log_softmax(model, batch, 0), torch.arange(3)).div(0.7).log_softmax(-1)
        for model in (policy.model, reference.model)
    )
    legal = torch.tensor([i for i in range(8)])
    expected = (log_p[t, legal].exp() * (log_p - log_q)[t, legal]).sum()
    torch.testing.assert_close(whole[0, int(batch.prompt_lengths[0]) + t], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_references_of_every_kind_agree(estimator: str, tmp_path: Path) -> None:
    model = language_model(1)
    model.save_pretrained(tmp_path)
    batch = episodes(["ab", "fade", "c"])
    batch.sampling = {"temperature": 1.0, **_policy().legality.to_sampling()}
    paid = [
        score_episodes(
            batch.select(slice(None)), [_term(_policy(), estimator=estimator, reference=reference)]
        ).rewards
        for reference in (None, model, str(tmp_path), _policy().reference())
    ]
    assert bool((paid[0] != 0).any())
    for other in paid[1:]:
        torch.testing.assert_close(other, paid[0], atol=2e-5, rtol=1e-4)


def test_a_model_as_reference_shares_temperature_and_legality() -> None:
    paid = {}
    for suppressed in ((), (2, 4, 5)):
        for reference in (None, language_model(1)):
            policy = TinyPolicy(language_model(0), language_model(1))
            envs = wrap_reward(vector_env(suppressed_tokens=suppressed), KLPenalty(reference=reference))
            envs.unwrapped.bind(policy)
            batch = collect(envs, policy, 4, seed=1)
            assert batch.sampling["suppressed_tokens"] == list(suppressed)
            batch.sampling["temperature"] = 2.0
            paid[reference is None, suppressed] = batch.rewards
    for suppressed in ((), (2, 4, 5)):
        torch.testing.assert_close(paid[True, suppressed], paid[False, suppressed], atol=2e-5, rtol=1e-4)
    cold, hot = (
        _term(_policy(), reference=language_model(1), estimator="full").kl(
            episodes(["fade"], sampling={"temperature": temperature})
        )
        for temperature in (1.0, 50.0)
    )
    assert float(hot.sum()) < 0.01 * float(cold.sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_separate_reference_is_scored_at_the_temperature_of_the_episodes(temperature: float) -> None:
    policy, model = _policy(), language_model(1)
    batch = episodes(["fade"], sampling={"temperature": temperature})
    start, end = int(batch.prompt_lengths[0]), int(batch.lengths[0])
    vocab = policy.legality.vocab_size
    logits = model(batch.input_ids[:, :end]).logits[0, start - 1 : end - 1, :vocab] / temperature
    theirs = logits.log_softmax(-1).gather(-1, batch.input_ids[0, start:end, None]).squeeze(-1)
    expected = (policy.log_prob(batch)[0, start:end] - theirs).detach()
    found = _term(policy, reference=model).kl(batch)[0, start:end]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "full"])
def test_a_reference_of_its_own_goes_before_the_policys(estimator: str) -> None:
    batch = episodes(["ab", "fade"], sampling={"temperature": 1.0})
    found = _term(_policy(1), estimator=estimator, reference=language_model(2)).kl(batch)
    right, other = (_term(_policy(seed), estimator=estimator).kl(batch) for seed in (2, 1))
    torch.testing.assert_close(found, right, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, other, atol=1e-2)


def test_the_full_kl_of_a_model_heeds_the_sampling_of_the_episodes() -> None:
    legality = TokenConstraints(vocab_size=len(TOKENIZER), suppressed_tokens=(8, 10))
    policy, model = _policy(), language_model(2)
    cold, hot = (
        episodes(["ab", "fade"], sampling={"temperature": temperature, **legality.to_sampling()})
        for temperature in (1.0, 2.0)
    )
    plain = full_kl(policy, model, cold)
    for batch, temperature in ((cold, 1.0), (hot, 2.0)):
        found = _term(policy, estimator="full", reference=model).kl(batch)
        right = full_kl(policy, model, batch, temperature=temperature, legality=legality)
        torch.testing.assert_close(found, right, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("estimator", ["k1", "full"])
def test_the_policys_temperature_counts_where_the_episodes_say_none(estimator: str) -> None:
    class Hot(TinyPolicy):
        def sampling(self) -> dict[str, Any]:
            return {"temperature": 3.0}

    policy = Hot(language_model(0), language_model(1))
    policy.attach(vector_env())
    term = _term(policy, estimator=estimator, reference=language_model(2))
    silent = term.kl(episodes(["fade"]))
    said, cold = (term.kl(episodes(["fade"], sampling={"temperature": t})) for t in (3.0, 1.0))
    torch.testing.assert_close(silent, said)
    assert not torch.allclose(silent, cold, atol=1e-2)


def test_what_stands_off_the_actions_has_no_part() -> None:
    class Junk:
        def __init__(self, policy: TinyPolicy, filler: float) -> None:
            self.policy, self.filler = policy, filler

        def log_prob(self, batch: EpisodeBatch) -> torch.Tensor:
            return self.policy.log_prob(batch).masked_fill(~batch.action_mask, self.filler)

    batch = episodes(["ab", "fade"])
    expected = _term(_policy()).kl(batch)
    policy: Any = Junk(_policy(), -torch.inf)  # a reference of one's own: the policy needs none
    found = _term(policy, reference=Junk(_policy().reference(), torch.nan)).kl(batch)
    assert torch.equal(found, expected) and bool(expected.any())


def test_what_is_asked_of_a_policy_is_said() -> None:
    class Bare:
        def log_prob(self, batch: EpisodeBatch) -> torch.Tensor:
            return torch.zeros(batch.input_ids.shape)

    bare: Any = Bare()
    batch = episodes(["ab"])
    assert not _term(bare, reference=Bare()).kl(batch).any()
    with pytest.raises(
        RewardError, match=r"needs a policy with log_prob\(\), reference\(\), .* without reference"
    ):
        _term(bare).kl(batch)
    with pytest.raises(RewardError, match="needs the policy: call envs"):
        KLPenalty().kl(batch)


def test_recorded_log_probs_and_a_reference_of_its_own_need_no_policy() -> None:
    batch, model = episodes(["ab"]), language_model(1)
    env = SimpleNamespace(recorded=lambda name: [-1.5], stepped=batch, stepped_rows=torch.tensor([0]))
    found = KLPenalty(0.5, reference=model).step_parts(env)
    assert found is not None
    end = int(batch.lengths[0])
    theirs = float(_log_softmax(model, batch, 0)[-1, batch.input_ids[0, end - 1]])
    assert found[1]["kl"].tolist() == pytest.approx([-1.5 - theirs], rel=1e-4)
    assert found[0].tolist() == pytest.approx([-0.5 * (-1.5 - theirs)], rel=1e-4)


def test_whole_distributions_are_not_recorded() -> None:
    env = SimpleNamespace(recorded=lambda name: [0.0])
    assert _term(_policy(), estimator="full").step_parts(env) is None


def test_a_reference_too_small_is_refused_by_name_when_it_scores_and_as_a_model_at_once(
    tmp_path: Path,
) -> None:
    short = GPT2LMHeadModel(config(n_positions=5))
    narrow = GPT2LMHeadModel(config(vocab_size=len(TOKENIZER) - 1))
    sampling = {"temperature": 1.0, "vocab_size": len(TOKENIZER)}
    fits, long = episodes(["a"], sampling=sampling), episodes(["a", "fadead"], sampling=sampling)
    assert int(fits.lengths.max()) <= 5 < int(long.lengths.max())
    for name, model in (("short", short), ("narrow", narrow)):
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="kl: the reference"):
            _term(_policy(), reference=model)
    by_name = _term(_policy(), reference=str(tmp_path / "short"))
    assert by_name.kl(fits).shape == fits.input_ids.shape
    with pytest.raises(ValueError, match="5 positions"):
        by_name.kl(long)
    with pytest.raises(ValueError, match=f"{len(TOKENIZER) - 1} logits"):
        _term(_policy(), reference=str(tmp_path / "narrow")).kl(fits)


def test_the_full_kl_keeps_to_its_byte_budget_and_takes_models_of_every_kind() -> None:
    policy, model, batch = _policy(), language_model(1), episodes(["ab", "fade"])
    whole = full_kl(policy, model, batch)
    rows: list[int] = []
    policy.model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].numel() // 16))
    split = full_kl(policy, model, batch, max_bytes=3 * 4 * len(TOKENIZER))
    torch.testing.assert_close(split, whole)
    assert max(rows) == 3 and sum(rows) == int(batch.action_mask.sum())

    class Headless(GPT2LMHeadModel):
        def get_output_embeddings(self) -> None:
            return None

    headless = Headless(config()).eval()
    headless.load_state_dict(model.state_dict())
    torch.testing.assert_close(full_kl(policy, headless, batch), whole, atol=1e-5, rtol=1e-4)
    holder = SimpleNamespace(model=model, config=None)
    torch.testing.assert_close(full_kl(policy, holder, batch), whole)
    with pytest.raises(ValueError, match="needs a causal language model, got Linear"):
        full_kl(policy, torch.nn.Linear(1, 1), batch)


def test_a_token_that_the_policy_can_not_choose_is_an_error() -> None:
    policy = TinyPolicy(language_model(0), language_model(1))
    envs = wrap_reward(vector_env(suppressed_tokens=(0,)), KLPenalty())
    envs.unwrapped.bind(policy)
    policy.attach(envs.unwrapped)
    message = "reward 'kl': the policy gives probability 0 to token 0 at column 3, .* prompt 'ab', completion"
    with pytest.raises(RewardError, match=message):
        score_episodes(episodes(["bad"], eos=True), [envs.term])


def test_recorded_log_probs_are_used_before_the_policy_is_asked() -> None:
    class Silent(TinyPolicy):
        def log_prob(self, episodes: EpisodeBatch) -> torch.Tensor:
            raise AssertionError("the policy was asked")

    reference = _policy().reference()
    envs = wrap_reward(vector_env(), KLPenalty(coef=1.0, reference=reference))
    obs, info = envs.reset(seed=0)
    envs.unwrapped.record(log_prob=torch.tensor([-1.0, -2.0, -3.0]))
    actions = random_actions(obs, info)
    _, rewards, _, _, _ = envs.step(actions)
    stepped = envs.unwrapped.stepped
    theirs = reference.log_prob(stepped).gather(1, stepped.last_action.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(rewards, -(torch.tensor([-1.0, -2.0, -3.0]) - theirs))

    silent = Silent(language_model(0), language_model(1))
    silent.attach(envs.unwrapped)
    envs = wrap_reward(vector_env(), KLPenalty(coef=1.0))
    envs.unwrapped.bind(silent)
    assert len(collect(envs, silent, 3, seed=0, scoring="immediate")) == 3


def test_nothing_recorded_asks_the_bound_policy() -> None:
    policy = _policy()
    envs = wrap_reward(vector_env(), KLPenalty(coef=1.0))
    envs.unwrapped.bind(policy)
    immediate = collect(envs, random_actions, 5, seed=0, scoring="immediate")
    torch.testing.assert_close(
        immediate.rewards, collect(envs, random_actions, 5, seed=0).rewards, atol=2e-5, rtol=1e-4
    )


def test_a_penalty_without_policy_is_refused_at_reset() -> None:
    envs = wrap_reward(vector_env(), ["weighted", {"of": "kl", "weight": 2.0}])
    with pytest.raises(
        RewardError, match=r"reward 'kl' needs the policy: call envs\.unwrapped\.bind\(policy\)"
    ):
        envs.reset(seed=0)
    with pytest.raises(RewardError, match="needs the policy"):
        collect(envs, random_actions, 2, seed=0)
    envs.unwrapped.bind(object())
    with pytest.raises(
        RewardError, match=r"needs a policy with log_prob\(\), reference\(\), got object without"
    ):
        envs.reset(seed=0)


def test_without_policy_and_record_the_step_says_so() -> None:
    envs = wrap_reward(vector_env(), KLPenalty(reference=_policy().reference()))
    obs, info = envs.reset(seed=0)
    with pytest.raises(RewardError, match="needs the policy"):
        envs.step(random_actions(obs, info))


def _single() -> gym.Env[Any, Any]:
    prompts = PromptSet.from_texts(PROMPTS, TOKENIZER, columns=COLUMNS)
    env = TextEnv(prompts=prompts, tokenizer=TOKENIZER, max_new_tokens=6)
    return wrap_reward(env, ["clipped", {"of": "kl", "low": -1}])


def test_a_single_environment_pays_kl() -> None:
    env: Any = _single()
    policy = _policy()
    env.unwrapped.bind(policy)
    env.reset(seed=0)
    _, reward, _, _, _ = env.step(2)
    alone = float(_term(policy).score(env.unwrapped.stepped).sum())
    assert reward == pytest.approx(max(-1.0, alone), abs=1e-5) != 0.0


@pytest.mark.parametrize("vectorize", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_other_vectorizations_are_refused_at_reset(vectorize: Any) -> None:
    envs = vectorize([_single])
    with pytest.raises(RewardError, match=r"reward .kl. needs the policy: .* make the native one"):
        envs.reset(seed=0)
    envs.close()


# -- the controller ----------------------------------------------------------------------------------------


def test_the_controller_by_hand() -> None:
    assert adapted_coefficient(0.1, 6.0, 100) == pytest.approx(0.1)
    assert adapted_coefficient(0.1, 0.0, 100, horizon=10) == pytest.approx(0.01)  # not 0.1 * (1 - 0.2 * 10)
    assert adapted_coefficient(0.1, 6.6, 100) == pytest.approx(0.1 * (1 + 0.1 * 100 / 10_000))
    assert adapted_coefficient(0.1, 600.0, 100) == pytest.approx(0.1 * (1 + 0.2 * 100 / 10_000))
    assert adapted_coefficient(0.1, -5.0, 50, target=2.0, horizon=100) == pytest.approx(
        0.1 * (1 - 0.2 * 50 / 100)
    )


@pytest.mark.parametrize("noted", [True, False])
def test_the_coefficient_moves_in_update_by_the_kl_of_own_tokens(noted: bool) -> None:
    policy = _policy()
    kl = float(_term(policy).kl(episodes(["ab", "fade"])).sum(-1).mean())
    target = 0.9 * kl  # near the KL: far from it the change is clipped, whatever the KL is counted per
    term = _term(policy, coef=0.5, controller="adaptive", target=target, horizon=20.0)
    batch = score_episodes(episodes(["ab", "fade"]), [term])
    assert term.coef == 0.5
    if not noted:
        batch.reward_terms = {}
    term.update(batch)
    assert term.coef == pytest.approx(0.5 * (1 + (1 / 0.9 - 1) * 2 / 20), rel=1e-5)
    fixed = _term(policy, coef=0.5)
    fixed.update(batch)
    assert fixed.coef == 0.5


def test_the_coefficient_is_in_the_state() -> None:
    def build() -> Any:
        envs = wrap_reward(vector_env(), ["kl", {"controller": "adaptive", "horizon": 10.0, "target": 0.1}])
        envs.unwrapped.bind(_policy())
        return wrap_reward(envs, "length")

    envs, other = build(), build()
    wrappers = reward_wrappers(envs)
    batch = collect(envs, envs.unwrapped.policy, 6, seed=0)
    state = json.loads(json.dumps(state_dict(wrappers)))
    assert state == {"kl": {"coef": wrappers[0].term.coef}, "length": {}} and wrappers[0].term.coef != 0.05
    load_state_dict(reward_wrappers(other), state)
    paid = [
        score_episodes(batch.select(slice(None)), reward_wrappers(one)).rewards
        for one in (envs, other, build())
    ]
    assert torch.equal(paid[0], paid[1]) and not torch.equal(paid[0], paid[2])
    with pytest.raises(
        ValueError, match=r"the state is for the rewards \['kl'\], this environment has \['kl', 'length'\]"
    ):
        load_state_dict(reward_wrappers(other), {"kl": {"coef": 1.0}})


def test_evaluation_does_not_move_the_coefficient() -> None:
    envs = wrap_reward(vector_env(), ["kl", {"controller": "adaptive", "horizon": 10.0}])
    envs.unwrapped.bind(_policy())
    collect(envs, envs.unwrapped.policy, 4, seed=0, update_terms=False)
    assert envs.term.coef == 0.05
    update(EpisodeBatch.from_ids([], []), [envs.term])
    assert envs.term.coef == 0.05


# -- the library's own policy and environments -------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_language_policy(estimator: str) -> None:
    policy = LanguagePolicy(language_model(0), tokenizer=TOKENIZER, temperature=0.8)
    envs = wrap_reward(vector_env(min_new_tokens=2), ["kl", {"estimator": estimator, "coef": 0.3}])
    envs.unwrapped.bind(policy)
    policy.reference()
    assert bool((collect(envs, policy, 6, seed=0).reward_terms["raw/kl"] == 0).all())
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    policy.invalidate()
    deferred, immediate = (
        collect(envs, policy, 6, seed=0, scoring=mode) for mode in ("deferred", "immediate")
    )
    assert bool((deferred.rewards != 0).any())
    for name in ("kl", "raw/kl"):
        torch.testing.assert_close(
            deferred.reward_terms[name], immediate.reward_terms[name], atol=2e-5, rtol=1e-4
        )


def test_made_environments_pay_kl_and_refuse_vectorizers() -> None:
    rewards = ["length", ["kl", {"coef": 0.2, "controller": "adaptive"}]]
    envs: Any = gym.make_vec("TextRLHF-v0", num_envs=2, rewards=rewards)
    assert [wrapper.name for wrapper in reward_wrappers(envs)] == ["length", "kl"]
    again: Any = gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.unwrapped.spec.to_json()))
    assert [spec_of(wrapper.term) for wrapper in reward_wrappers(again)] == [
        ["length", {}],
        ["kl", {"coef": 0.2, "controller": "adaptive"}],
    ]
    sync: Any = gym.make_vec("TextRLHF-v0", num_envs=2, vectorization_mode="sync", rewards=rewards)
    with pytest.raises(RewardError, match="reward 'kl' needs the policy"):
        sync.reset(seed=0)
    single: Any = gym.make("TextRLHF-v0", rewards=rewards)
    remade: Any = gym.make(gym.envs.registration.EnvSpec.from_json(single.spec.to_json()))
    assert single.spec == remade.spec and str(single) == str(remade)
