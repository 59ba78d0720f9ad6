"""NLPO: the nucleus in acting and in log-probs, the mask policy's renewal, and whole runs."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import agents
from tests.helpers.agents import equal, rollout
from tests.helpers.models import tiny
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.nlpo import NLPO, NLPOConfig, NucleusPolicy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.ppo import PPO, PPOConfig
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.nucleus import Nucleus
from textenv.modeling.log_probs import token_log_probs
from textenv.modeling.nucleus import nucleus_mask
from textenv.rollout import collect


def make_envs(num_envs: int = 8, task: str = "probe-constant", **kwargs: Any) -> Any:
    if task == "probe-constant":
        kwargs["task_kwargs"] = {"budget": 8}
    return agents.make_envs("nlpo", num_envs, task, **kwargs)


def sharp_model(seed: int = 0, scale: float = 6.0, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose next-token distributions are far from flat, so that a nucleus leaves something out."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny())
    with torch.no_grad():
        model.transformer.wte.weight.mul_(scale * 10)
    return model.to(dtype)


def make(model: Any = None, envs: Any = None, **settings: Any) -> Any:
    passes = {
        "epochs": 2,
        "minibatches": 2,
        "mask_top_p": 0.8,
        "mask_min_tokens": 1,
        "mask_update_iterations": 5,
    }
    envs = make_envs() if envs is None else envs
    return agents.make("nlpo", envs, sharp_model() if model is None else model, **{**passes, **settings})


def allowed(model: nn.Module, episodes: EpisodeBatch, top_p: float, min_tokens: int) -> Tensor:
    """(A, V) bool: the nucleus at each action, from plain forwards of single episodes."""
    rule = TokenConstraints.from_sampling(episodes.sampling)
    assert rule is not None
    rows = []
    for ids, length, mask, steps in zip(
        episodes.input_ids, episodes.lengths, episodes.action_mask, episodes.action_steps, strict=True
    ):
        with torch.no_grad():
            logits = model(ids[:length].unsqueeze(0)).logits[0]
        columns = mask.nonzero().squeeze(-1)
        legal = rule.apply(logits[columns - 1], steps[columns])
        rows.append(nucleus_mask(legal, top_p, min_tokens))
    return torch.cat(rows)


# -- the nucleus ---------------------------------------------------------------------------------------------


def test_the_nucleus_by_hand() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]).log()
    assert nucleus_mask(logits, 0.6).tolist() == [[True, True, False, False], [True] * 4]
    assert nucleus_mask(logits, 0.3)[0].tolist() == [True, False, False, False]
    assert nucleus_mask(logits, 0.3, 3)[0].tolist() == [True, True, True, False]
    assert bool(nucleus_mask(logits, 1.0).all()) and bool(nucleus_mask(logits, 0.1, 100).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"top_p": 0.0}, "top_p must lie in"), ({"min_tokens": 0}, "min_tokens must be")],
)
def test_a_nucleus_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nucleus(sharp_model(), **settings)


@pytest.mark.parametrize("rows", [None, [0, 1, 2], [2, 0]])
@pytest.mark.parametrize("theirs", [None, [2, 0, 1]])
def test_logits_of_the_mask_policy_come_in_the_order_that_is_asked_for(rows: Any, theirs: Any) -> None:
    nucleus = Nucleus(sharp_model())
    order = [0, 1, 2] if theirs is None else theirs
    logits = torch.tensor([[10.0 * row] for row in order])
    theirs = None if theirs is None else torch.tensor(theirs)
    nucleus.decoding = SimpleNamespace(next_logits=lambda *_: (theirs, logits, None))  # type: ignore[assignment]
    asked = None if rows is None else torch.tensor(rows)
    found = nucleus.next_logits(asked, torch.zeros(3, 4), torch.ones(3), None)
    expected = [0, 1, 2] if rows is None else rows
    assert found.squeeze(-1).tolist() == [10.0 * row for row in expected]


def test_without_a_rule_the_nucleus_is_one_of_the_policys_tokens() -> None:
    nucleus = Nucleus(sharp_model(), top_p=0.6, min_tokens=1)
    logits = torch.zeros(1, 3, dtype=torch.float64)
    # The fourth token is none of the policy's. At temperature 2 the first has 0.5 of the mass, at 1 more.
    theirs = 2 * torch.tensor([[0.5, 0.3, 0.2, 0.9]], dtype=torch.float64).log()
    options: dict[str, Any] = {"legality": None, "chosen": None}
    kept = nucleus.restrict(logits, theirs, torch.zeros(1), temperature=2.0, **options)
    assert kept.tolist() == [[0.0, 0.0, -torch.inf]]
    kept = nucleus.restrict(logits, theirs, torch.zeros(1), temperature=1.0, **options)
    assert kept.tolist() == [[0.0, -torch.inf, -torch.inf]]
    options["chosen"] = torch.tensor([2])
    kept = nucleus.restrict(logits, theirs, torch.zeros(1), temperature=1.0, **options)
    assert kept.tolist() == [[0.0, -torch.inf, 0.0]]


def test_log_probs_within_the_nucleus_by_hand_and_by_chunks() -> None:
    model, other = sharp_model(0, dtype=torch.float64), sharp_model(1, dtype=torch.float64)
    policy = NucleusPolicy(model, mask_top_p=0.7, mask_min_tokens=2)
    policy.mask_model.load_state_dict(other.state_dict())
    episodes = collect(make_envs(), policy, 12, seed=3)
    kept = allowed(policy.mask_model, episodes, 0.7, 2)
    assert bool((~kept).any())
    found: list[list[Tensor]] = []
    for budget in (1 << 29, 4 * 11 * 3):  # one chunk, and chunks of a few actions
        out = token_log_probs(
            model,
            episodes,
            legality=TokenConstraints.from_sampling(episodes.sampling),
            restriction=policy.nucleus,
            with_entropy=True,
            max_bytes=budget,
        )
        assert out.entropy is not None
        (out.log_probs.sum() + out.entropy.sum()).backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        found.append([out.log_probs.detach(), out.entropy.detach(), *grads])
    for whole, chunked in zip(*found, strict=True):
        assert torch.allclose(whole, chunked, atol=1e-12)
    assert all(parameter.grad is None for parameter in policy.mask_model.parameters())
    row = 0
    for i, (ids, length) in enumerate(zip(episodes.input_ids, episodes.lengths, strict=True)):
        logits = model(ids[:length].unsqueeze(0)).logits[0].detach()
        for column in episodes.action_mask[i].nonzero().squeeze(-1).tolist():
            possible = logits[column - 1, : kept.shape[1]].masked_fill(~kept[row], -torch.inf)
            expected = torch.log_softmax(possible, -1)
            assert float(found[0][0][i, column]) == pytest.approx(float(expected[ids[column]]), abs=1e-10)
            inside = expected[kept[row]]
            assert float(found[0][1][i, column]) == pytest.approx(float(-(inside.exp() * inside).sum()))
            row += 1


def test_the_gradient_is_that_of_the_masked_log_prob() -> None:
    policy = NucleusPolicy(sharp_model(dtype=torch.float64), mask_top_p=0.7, mask_min_tokens=1)
    episodes = collect(make_envs(), policy, 8, seed=3)
    parameter = policy.model.transformer.ln_f.weight
    with policy.masked():
        (exact,) = torch.autograd.grad(policy(episodes).log_probs.sum(), parameter)
        for index in range(len(parameter)):
            ends = []
            for shift in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter[index] += shift
                    ends.append(float(policy(episodes).log_probs.sum()))
                    parameter[index] -= shift
            assert float(exact[index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-6)


# -- acting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
def test_every_sampled_token_lies_in_the_nucleus_and_is_trained_as_it_was_sampled(cached: bool) -> None:
    policy = NucleusPolicy(sharp_model(dtype=torch.float64), mask_top_p=0.6, mask_min_tokens=1, cached=cached)
    policy.mask_model.load_state_dict(sharp_model(1, dtype=torch.float64).state_dict())
    policy.invalidate()
    envs = make_envs(5, min_new_tokens=2)
    episodes = collect(envs, policy, 64, seed=1)
    kept = allowed(policy.mask_model, episodes, 0.6, 1)
    chosen = episodes.input_ids[episodes.action_mask]
    assert bool(kept.gather(1, chosen.unsqueeze(1)).all())
    assert 0.05 < float((~kept).double().mean()) < 0.95
    with policy.masked():
        scored = policy.log_prob(episodes)
    assert episodes.log_probs is not None
    assert torch.allclose(scored, episodes.log_probs.double(), atol=1e-6)
    assert float((policy.log_prob(episodes) - scored).abs().max()) > 0.1  # the whole distribution is another
    plain = collect(make_envs(5, min_new_tokens=2), LanguagePolicy(policy.model), 64, seed=1)
    outside = ~allowed(policy.mask_model, plain, 0.6, 1)
    chosen = plain.input_ids[plain.action_mask]
    assert bool(outside.gather(1, chosen.unsqueeze(1)).any())  # without the mask they leave it


def test_the_number_of_rows_changes_nothing() -> None:
    policy = NucleusPolicy(sharp_model(), mask_top_p=0.6, mask_min_tokens=1)
    policy.mask_model.load_state_dict(sharp_model(1).state_dict())
    few, many = (collect(make_envs(n), policy, 24, seed=1) for n in (2, 16))
    assert torch.equal(few.input_ids, many.input_ids)


def test_caches_that_lost_step_are_put_in_order() -> None:
    policy = NucleusPolicy(sharp_model(dtype=torch.float64), mask_top_p=0.6, mask_min_tokens=1)
    policy.mask_model.load_state_dict(sharp_model(1, dtype=torch.float64).state_dict())
    ids = torch.tensor([[0, 1, 2, 0], [3, 2, 0, 0], [1, 1, 3, 0]])
    lengths = torch.tensor([3, 2, 3])

    def choose(active: list[bool]) -> Tensor:
        mask = (torch.arange(4) < lengths.unsqueeze(1)).long()
        obs = {"input_ids": ids, "attention_mask": mask, "prompt_length": torch.ones(3, dtype=torch.int64)}
        return policy.act(obs, torch.arange(3), active=torch.tensor(active))[1]["log_prob"]

    whole = choose([True, True, True])
    choose([False, True, True])
    policy.nucleus.decoding.invalidate()  # only the mask policy's slots are dealt anew, in another order
    assert torch.allclose(choose([True, True, True]), whole, atol=1e-10)


def test_with_all_tokens_in_the_nucleus_it_is_ppo() -> None:
    shared = {"iterations": 2, "episodes_per_iteration": 16, "learning_rate": 1e-2}
    plain = PPO(sharp_model(dtype=torch.float64), envs=make_envs(), config=PPOConfig(**shared))
    plain.learn()
    unmasked = {"mask_top_p": 1.0, "mask_min_tokens": 100}
    agent = make(sharp_model(dtype=torch.float64), **shared, epochs=4, minibatches=4, **unmasked)
    agent.learn()
    ours = agent.policy.model.state_dict()
    assert all(torch.allclose(v, ours[k], atol=1e-6) for k, v in plain.policy.model.state_dict().items())


# -- the update ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_the_ratio_of_the_first_step_is_one_and_the_kl_zero(packing: bool) -> None:
    agent = make(epochs=1, minibatches=1, kl_coef=0.1, packing=packing)
    batch = rollout(agent)
    row = agent.rollout_metrics(batch)
    assert row["objective/kl"] == row["objective/kl_per_token"] == 0.0
    assert not bool(batch.episodes.reward_terms["kl"].any())
    assert bool((batch["old_log_probs"] > batch["unmasked_log_probs"] + 0.01).any())  # but the mask is on
    stats = agent.optimizer_step(batch)
    assert stats["ratio"] == 1.0
    assert stats["policy/approx_kl"] == 0.0 and stats["policy/clip_fraction"] == 0.0


def test_the_kl_is_of_the_whole_distributions() -> None:
    agent = make(epochs=1, minibatches=1, kl_coef=0.1)
    agent.optimizer_step(rollout(agent))
    batch = rollout(agent)
    with torch.no_grad():
        ours = token_log_probs(agent.policy.model, batch.episodes, legality=_rule(batch)).log_probs
    kl = (ours - agent.reference.log_prob(batch.episodes)).sum(-1)
    assert float(kl.abs().max()) > 1e-3
    assert torch.allclose(batch.episodes.reward_terms["kl"].sum(-1), -0.1 * kl, atol=1e-5)
    assert agent.rollout_metrics(batch)["objective/kl"] == pytest.approx(float(kl.mean()), abs=1e-5)


def _rule(batch: TrainingBatch) -> TokenConstraints | None:
    return TokenConstraints.from_sampling(batch.episodes.sampling)


def test_the_text_mixture_is_not_masked() -> None:
    text = EpisodeBatch.from_ids([[0]] * 4, [[1, 2, 3, 2]] * 4)
    config = NLPOConfig(mask_top_p=0.3, mask_min_tokens=1, ptx_coef=1.0, ptx_batch_size=4)
    agent = NLPO(sharp_model(), envs=make_envs(), config=config, dataset=text)
    batch = rollout(agent)
    found = float(agent.loss(batch, agent.totals(batch))[1]["policy/ptx_loss"])
    expected = -float(LanguagePolicy(agent.policy.model).log_prob(text).sum() / 16)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("every", "renewals"), [(2, [2, 4]), (None, []), (1, [1, 2, 3, 4, 5])])
def test_the_mask_that_samples_changes_after_mu_iterations_and_only_then(
    every: int | None, renewals: list[int]
) -> None:
    agent = make(iterations=5, mask_update_iterations=every, kl_coef=0.0, learning_rate=5e-2)
    first = copy.deepcopy(agent.policy.mask_model)
    masks, sampled_under = [], []
    start = agent.update

    def update(batch: TrainingBatch) -> dict[str, float]:
        # What was just sampled stems from the mask policy as it was until now, and from no other.
        kept = allowed(agent.policy.mask_model, batch.episodes, 0.8, 1)
        chosen = batch.episodes.input_ids[batch.mask].unsqueeze(1)
        sampled_under.append(bool(kept.gather(1, chosen).all()))
        old = allowed(first, batch.episodes, 0.8, 1)
        masks.append(bool((old != kept).any()))
        return start(batch)

    agent.update = update  # type: ignore[method-assign]
    agent.learn()
    assert all(sampled_under)
    # The iteration after the first renewal is the first that another mask plays.
    since = renewals[0] if renewals else 5
    assert not any(masks[:since])
    assert all(masks[since:])
    same = all(
        torch.equal(a, b)
        for a, b in zip(agent.policy.mask_model.parameters(), agent.policy.model.parameters(), strict=True)
    )
    assert same == (5 in renewals)


# -- runs ----------------------------------------------------------------------------------------------------


def test_the_mask_policy_is_saved(tmp_path: Path) -> None:
    agent = make(mask_update_iterations=3)
    agent.learn()
    agent.save(tmp_path)
    saved = NucleusPolicy.load(tmp_path)
    assert (saved.nucleus.top_p, saved.nucleus.min_tokens) == (0.8, 1)
    assert equal(list(saved.mask_model.parameters()), list(agent.policy.mask_model.parameters()))
    assert not equal(list(saved.mask_model.parameters()), list(saved.model.parameters()))


def test_adapters_are_masked_by_their_own_copy() -> None:
    agent = make(
        tiny(),
        mask_update_iterations=1,
        iterations=1,
    )
    shared = {id(p) for p in agent.policy.model.parameters()}
    assert not any(id(p) in shared for p in agent.policy.mask_model.parameters())
    lora = NucleusPolicy(tiny(), lora={"r": 2}, mask_min_tokens=1)
    shared = {id(p) for p in lora.model.parameters() if not p.requires_grad}
    own = [n for n, p in lora.mask_model.named_parameters() if id(p) not in shared]
    assert own and all("lora_" in name for name in own)
    with torch.no_grad():
        for parameter in lora.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    lora.renew_mask()
    pairs = zip(lora.mask_model.parameters(), lora.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_top_p": 0.0}, r"mask_top_p must be in \(0, 1\], got 0.0"),
        ({"mask_min_tokens": 0}, "mask_min_tokens must be >= 1, got 0"),
        ({"mask_update_iterations": 0}, "mask_update_iterations must be >= 1, got 0"),
        ({"kl_placement": "loss"}, "kl_placement must be 'reward'.*got 'loss'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NLPOConfig(**settings)


def test_a_policy_without_a_mask_and_wrappers_that_pay_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="NLPO needs a NucleusPolicy or a model, got LanguagePolicy"):
        make(LanguagePolicy(sharp_model()))

    class Doubled(gym.wrappers.vector.TransformReward):  # type: ignore[type-arg]
        def __init__(self, envs: Any) -> None:
            super().__init__(envs, lambda reward: 2 * reward)

    with pytest.raises(ValueError, match=r"scored after the rollout, but Doubled changes rewards"):
        make(envs=Doubled(make_envs()), kl_coef=0.1)


def test_a_saved_policy_is_not_loaded_by_a_class_without_its_settings(tmp_path: Path) -> None:
    policy = NucleusPolicy(tiny(), mask_top_p=0.5)
    policy.save(tmp_path / "nlpo")
    with pytest.raises(
        ValueError, match=r"class NucleusPolicy with the settings \['mask_.*\], which Language"
    ):
        LanguagePolicy.load(tmp_path / "nlpo")
    plain = LanguagePolicy(tmp_path / "nlpo")  # as the error says
    again = NucleusPolicy.load(tmp_path / "nlpo")
    plain.save(tmp_path / "plain")
    widened = NucleusPolicy.load(tmp_path / "plain")  # a class may add settings, which then have defaults
    ids = torch.arange(3).unsqueeze(0)
    logits = [each.model(input_ids=ids).logits for each in (policy, plain, again, widened)]
    assert all(torch.equal(logits[0], other) for other in logits[1:])
