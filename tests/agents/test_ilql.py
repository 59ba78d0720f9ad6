"""ILQL: its loss by hand, the pace of its target heads, and that it acts with the distribution it reports."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import agents
from tests.helpers.models import TOKENIZER, tiny
from tests.helpers.numeric_helpers import relative_error
from textenv import collect
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.data.episodes import as_episodes, from_preferences
from textenv.agents.ilql import ILQL, ILQLPolicy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch

DATA = agents.demonstrations()
make = partial(agents.make, "ilql", steps=4, batch_size=16, target_every=1, target_alpha=0.005)


def stir(policy: ILQLPolicy) -> None:
    """Heads end in zeros; give all of them some weights, each its own."""
    generator = torch.Generator().manual_seed(3)
    for parameter in policy.heads.parameters():
        parameter.data.normal_(0.0, 0.5, generator=generator)
    policy.invalidate()


# -- the loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awac_beta", [0.0, 2.0])
def test_the_loss_by_loops(awac_beta: float) -> None:
    agent = make(gamma=0.9, expectile=0.8, cql_coef=0.3, awac_coef=0.7, awac_beta=awac_beta)
    stir(agent.policy)
    batch = TrainingBatch(DATA.select(slice(0, 6)))
    loss, stats = agent.loss(batch, agent.totals(batch))

    policy, heads = agent.policy, agent.policy.heads
    q_loss = value_loss = cql = awac = 0.0
    tokens = 0
    for row in range(6):
        size = int(batch.episodes.lengths[row])
        start = int(batch.episodes.prompt_lengths[row])
        ids = batch.episodes.input_ids[row : row + 1, :size]
        with torch.no_grad():
            out = policy.model(ids, output_hidden_states=True)
            hidden = out.hidden_states[-1][0]
            values = heads.v_head(hidden)
            q = [head(hidden) for head in heads.q_heads]
            target = torch.minimum(*[head(hidden) for head in heads.target_q_heads])
            log_pi = out.logits[0].log_softmax(-1)
        for p in range(start, size):
            a, s = int(ids[0, p]), p - 1
            tokens += 1
            y = float(batch.episodes.rewards[row, p]) + (0.9 * float(values[p]) if p + 1 < size else 0.0)
            difference = float(target[s, a] - values[s])
            q_loss += sum((float(one[s, a]) - y) ** 2 for one in q)
            value_loss += (0.2 if difference < 0 else 0.8) * difference**2
            cql += sum(float(one[s].logsumexp(-1) - one[s, a]) for one in q)
            awac -= float(torch.tensor(awac_beta * difference).exp()) * float(log_pi[s, a])
    expected = {"q_loss": q_loss, "value_loss": value_loss, "cql_loss": cql, "awac_loss": awac}
    for name, total in expected.items():
        assert float(stats[f"ilql/{name}"]) == pytest.approx(total / tokens, rel=1e-4), name
    assert loss.item() == pytest.approx((q_loss + value_loss + 0.3 * cql + 0.7 * awac) / tokens, rel=1e-4)


def test_eos_is_an_action_although_it_is_the_padding() -> None:
    eos = TOKENIZER.eos_token_id
    episodes = EpisodeBatch.from_ids(
        [[0], [0]], [[eos], [1, 2, eos]], rewards=[1.0, 0.0], pad_token_id=eos, sampling={}
    )
    agent = make(dataset=episodes, steps=60, batch_size=2, decode_beta=30.0)
    agent.learn()
    assert float(agent.policy.log_prob(episodes)[0, 1].exp()) > 0.9


# -- target heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "synced"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6])])
def test_targets_move_with_optimizer_steps_whatever_the_size_of_the_data(
    every: int, synced: list[int]
) -> None:
    # 6 steps are 2 passes over 48 episodes here; tied to data epochs, targets would hardly ever move.
    agent = make(steps=6, target_every=every, target_alpha=1.0)
    moved = []
    kept = [p.clone() for p in agent.policy.heads.target_q_heads.parameters()]
    for number in range(1, 7):
        agent.optimizer_step(agent.batch(torch.arange(16)))
        now = [p.clone() for p in agent.policy.heads.target_q_heads.parameters()]
        if not all(torch.equal(a, b) for a, b in zip(kept, now, strict=True)):
            moved.append(number)
            online = agent.policy.heads.q_heads.parameters()
            assert all(torch.allclose(a, b) for a, b in zip(now, online, strict=True))
        kept = now
    assert moved == synced


def test_the_optimizer_does_not_own_the_target_heads() -> None:
    agent = make()
    owned = {id(p) for group in agent.optimizer.param_groups for p in group["params"]}
    assert not owned & {id(p) for p in agent.policy.heads.target_q_heads.parameters()}
    assert {id(p) for p in agent.policy.heads.q_heads.parameters()} <= owned


# -- acting --------------------------------------------------------------------------------------------------


def policy_with(beta: float, **options: Any) -> ILQLPolicy:
    policy = ILQLPolicy(tiny(), tokenizer=TOKENIZER, beta=beta, seed=1, **options)
    stir(policy)
    return policy


@pytest.mark.parametrize("q_head", ["linear", "mlp"])
def test_log_probs_are_those_of_the_shifted_distribution(q_head: Any) -> None:
    policy = policy_with(2.5, q_head=q_head)
    episodes = DATA.select(slice(0, 8))
    found = policy.log_prob(episodes)
    with torch.no_grad():
        out = policy.model(episodes.input_ids, output_hidden_states=True)
        hidden = out.hidden_states[-1]
        heads = policy.heads
        q = torch.minimum(*[head(hidden) for head in heads.target_q_heads])
        shifted = out.logits.log_softmax(-1) + 2.5 * (q - heads.v_head(hidden).unsqueeze(-1))
        log_probs = shifted.log_softmax(-1)[:, :-1].gather(-1, episodes.input_ids[:, 1:, None]).squeeze(-1)
    expected = torch.nn.functional.pad(log_probs, (1, 0)) * episodes.action_mask
    assert torch.allclose(found, expected, atol=1e-5)


def test_acting_and_log_prob_agree_at_every_beta() -> None:
    policy = policy_with(0.0)
    envs = agents.make_envs(num_envs=8)
    seen = []
    for beta in (0.0, 1.0, 16.0):
        policy.beta = beta
        episodes = collect(envs, policy, 24, seed=5)
        assert episodes.log_probs is not None
        again = policy.log_prob(episodes)
        assert torch.allclose(episodes.log_probs, again, atol=1e-4)
        seen.append(float(again.sum()))
    assert len(set(seen)) == 3


def test_calling_the_policy_gives_the_language_model_itself() -> None:
    policy = policy_with(8.0)
    episodes = DATA.select(slice(0, 4))
    own = policy(episodes).log_probs
    assert own.requires_grad
    shifted = policy.log_prob(episodes)
    policy.beta = 0.0
    assert relative_error([own], [policy.log_prob(episodes)]) < 1e-5
    assert not torch.allclose(own.detach(), shifted, atol=1e-2)


def test_a_small_byte_budget_changes_nothing() -> None:
    policy = policy_with(3.0)
    episodes = DATA.select(slice(0, 8))
    parts = policy.forward_model(policy.model, episodes, logits_processor=policy.shift, max_bytes=4 * 7 * 5)
    assert relative_error([parts.log_probs], [policy.log_prob(episodes)]) < 1e-5


def test_entropy_falls_as_beta_rises() -> None:
    policy = policy_with(0.0)
    entropies = []
    for beta in (0.0, 5.0, 100.0):
        policy.beta = beta
        entropies.append(float(policy.entropy(DATA).sum()))
    assert entropies[0] > entropies[1] > entropies[2]


def test_beta_must_not_be_negative() -> None:
    policy = policy_with(1.0)
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="beta must be >= 0"):
            policy.beta = value


def test_a_sweep_evaluates_each_beta_and_leaves_the_policys_own() -> None:
    agent = make(steps=40, decode_beta=2.0)
    agent.learn()
    envs = agents.make_envs(num_envs=16)
    found = agent.sweep([0.0, 100.0], envs, 64)
    assert agent.policy.beta == 2.0
    assert found[100.0].metrics["return/mean"] > found[0.0].metrics["return/mean"]


# -- runs and files ------------------------------------------------------------------------------------------


def test_it_loads_with_heads_targets_and_beta(tmp_path: Path) -> None:
    agent = make(decode_beta=3.0, num_q=3, head="linear", target_alpha=0.5, target_every=3)
    agent.learn()
    agent.save(tmp_path / "agent")
    again = ILQL.load(tmp_path / "agent", dataset=DATA, tokenizer=TOKENIZER)
    assert again.policy.beta == 3.0 and again.policy.heads.num_q == 3
    assert torch.equal(agent.policy.log_prob(DATA), again.policy.log_prob(DATA))
    alone = ILQLPolicy.load(tmp_path / "agent", beta=0.0)
    assert alone.beta == 0.0


def test_a_policy_without_q_heads_is_refused() -> None:
    with pytest.raises(TypeError, match="ILQLPolicy"):
        ILQL(LanguagePolicy(tiny(), tokenizer=TOKENIZER), dataset=DATA)


# -- data ----------------------------------------------------------------------------------------------------


def test_pairs_count_plus_and_minus_one_at_their_last_token() -> None:
    chosen = EpisodeBatch.from_ids([[0], [1]], [[1, 2], [3]])
    rejected = EpisodeBatch.from_ids([[0], [1]], [[2], [1, 2, 3]])
    episodes = from_preferences(PreferenceBatch(chosen=chosen, rejected=rejected))
    assert episodes.returns.tolist() == [1.0, 1.0, -1.0, -1.0]
    rewarded = episodes.rewards.nonzero()
    assert rewarded[:, 1].tolist() == episodes.last_action.tolist()
    assert as_episodes(PreferenceBatch(chosen=chosen, rejected=rejected), None).returns.tolist() == [
        1,
        1,
        -1,
        -1,
    ]


def test_rows_of_every_form_become_episodes() -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "rewards": [
            {"prompt": "a", "completion": "bc", "reward": 0.5},
            {"prompt": "b", "completion": "c", "reward": -1.0},
        ],
        "pairs": [{"prompt": "a", "chosen": "b", "rejected": "cd"}],
        "ranks": [{"prompt": "a", "completions": ["b", "c", "d"]}],
    }
    returns = {name: as_episodes(data, TOKENIZER).returns.tolist() for name, data in rows.items()}
    assert returns == {"rewards": [0.5, -1.0], "pairs": [1.0, -1.0], "ranks": [1.0, 0.0, -1.0]}
    with pytest.raises(ValueError, match="at least 2"):
        as_episodes([{"prompt": "a", "completions": ["b"]}], TOKENIZER)
    with pytest.raises(ValueError, match="needs tokenizer="):
        as_episodes(rows["pairs"], None)


def test_standardised_returns() -> None:
    agent = make(standardize_returns=True)
    returns = agent.dataset.returns
    assert float(returns.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(returns.std()) == pytest.approx(1.0, abs=1e-5)
    assert agent.dataset.rewards is not DATA.rewards
    assert float(DATA.returns.mean()) > 0.1  # the data given stay as they were
