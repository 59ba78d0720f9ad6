"""Best-of-n sampling: estimates and KL by hand, choices, and what an evaluation says."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch

import textenv
from tests.helpers import agents
from textenv.agents.base.groups import check_groups, group_rows
from textenv.agents.best_of_n import BestOfN, BestOfNConfig
from textenv.agents.evaluation.evaluator import evaluate
from textenv.agents.losses.best_of_n import best_of_k, best_of_n_kl
from textenv.episodes.batch import EpisodeBatch

make_envs = partial(agents.make_envs, "best-of-n")
make = partial(agents.make, "best-of-n", eval_episodes=16)


# -- the formulas --------------------------------------------------------------------------------------------


def test_the_best_of_k_is_the_mean_over_all_subsets() -> None:
    scores = torch.rand(3, 6, dtype=torch.float64)
    values = torch.rand(3, 6, dtype=torch.float64)
    found, worth = best_of_k(scores), best_of_k(scores, values)
    for row in range(3):
        for k in range(1, 7):
            subsets = list(itertools.combinations(range(6), k))
            best = [max(subset, key=lambda i: float(scores[row, i])) for subset in subsets]
            assert float(found[row, k - 1]) == pytest.approx(
                sum(float(scores[row, i]) for i in best) / len(best), abs=1e-12
            )
            assert float(worth[row, k - 1]) == pytest.approx(
                sum(float(values[row, i]) for i in best) / len(best), abs=1e-12
            )


def test_the_best_of_k_by_hand_with_ties() -> None:
    # Of the pairs (1, 1), (1, 3), (1, 3) two hold the 3; the first two samples are as good as each other.
    assert best_of_k(torch.tensor([[1.0, 3.0, 1.0]])).tolist()[0] == pytest.approx([5 / 3, 7 / 3, 3.0])
    worth = best_of_k(torch.tensor([[2.0, 2.0]]), torch.tensor([[0.0, 1.0]]))
    assert worth.tolist() == [[0.5, 0.5]]


def test_many_samples_do_not_overflow() -> None:
    found = best_of_k(torch.linspace(0, 1, 1100).unsqueeze(0))
    assert bool(torch.isfinite(found).all()) and bool((found.diff() > 0).all())
    # The k-th order statistic of uniforms: k / (k + 1), here of a fine grid.
    assert float(found[0, 9]) == pytest.approx(10 / 11, abs=2e-3)


def exact_kl(probabilities: torch.Tensor, n: int) -> float:
    """KL of best-of-n over outcomes in the order of their scores, from its definition."""
    below = torch.cat([torch.zeros(1, dtype=torch.float64), probabilities.cumsum(0)])
    best = below[1:] ** n - below[:-1] ** n
    return float((best * (best / probabilities).log()).sum())


def test_the_kl_is_a_bound_and_exact_without_ties() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    for n in (2, 4, 16):
        coarse = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        fine = torch.full((20_000,), 1 / 20_000, dtype=torch.float64)
        assert exact_kl(coarse, n) < best_of_n_kl(n)
        assert exact_kl(fine, n) == pytest.approx(best_of_n_kl(n), abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "values"),
    [(torch.ones(3), None), (torch.ones(2, 0), None), (torch.ones(2, 3), torch.ones(3, 2))],
)
def test_wrong_shapes(scores: torch.Tensor, values: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="must both have the shape"):
        best_of_k(scores, values)


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        BestOfNConfig(n=0)
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        best_of_n_kl(0)


# -- groups --------------------------------------------------------------------------------------------------


def test_groups_are_whole_or_refused() -> None:
    episodes = EpisodeBatch.from_ids([[1]] * 4, [[5]] * 4)
    episodes.episode_id = torch.tensor([6, 5, 4, 7])
    assert group_rows(episodes, 2).tolist() == [[2, 1], [0, 3]]
    with pytest.raises(ValueError, match="in groups of 3, got 4 episodes"):
        group_rows(episodes, 3)
    for ids in ([5, 6, 7, 8], [0, 2, 4, 6]):  # off the groups' places; halves of groups
        episodes.episode_id = torch.tensor(ids)
        with pytest.raises(ValueError, match="whole groups of 2"):
            group_rows(episodes, 2)
    episodes.episode_id = torch.tensor([4, 5, 6, 7])
    episodes.prompt_index = torch.tensor([0, 0, 0, 1])
    with pytest.raises(ValueError, match="on one prompt each"):
        group_rows(episodes, 2)


def test_an_environment_that_deals_too_few_is_refused() -> None:
    check_groups(make_envs(samples_per_prompt=8), 4, who="x")
    with pytest.raises(ValueError, match=r"n=4 needs 4 episodes .*samples_per_prompt=4.*got 2"):
        make().evaluate(make_envs(samples_per_prompt=2))


# -- the agent -----------------------------------------------------------------------------------------------


def test_the_best_of_each_group_is_measured() -> None:
    agent = make()
    played = evaluate(agent.policy, make_envs(), 64).episodes
    groups = played.returns.view(16, 4)
    found = agent.evaluate()
    assert len(found.episodes) == 16 == found.metrics["episodes"]
    assert torch.equal(found.episodes.returns, groups.amax(1))
    assert torch.equal(found.episodes.episode_id, groups.argmax(1) + 4 * torch.arange(16))
    assert found.metrics["return/mean"] == pytest.approx(float(groups.amax(1).mean()), abs=1e-6)
    assert found.metrics["best_of_k/return@4"] == pytest.approx(found.metrics["return/mean"], abs=1e-6)
    assert found.metrics["best_of_k/return@1"] == pytest.approx(float(groups.mean()), abs=1e-6)
    assert found.metrics["objective/kl"] == found.metrics["best_of_k/kl@4"] == best_of_n_kl(4)
    assert found.metrics["best_of_k/kl@1"] == 0.0
    assert len(found.samples) == 8


def test_the_best_of_one_is_the_policy() -> None:
    agent = make(make_envs(samples_per_prompt=1), n=1)
    found, plain = agent.evaluate(), evaluate(agent.policy, make_envs(samples_per_prompt=1), 16)
    assert torch.equal(found.episodes.input_ids, plain.episodes.input_ids)
    assert found.metrics["objective/kl"] == 0.0


def test_a_reward_term_may_choose() -> None:
    rewards = [["probe-end", {"budget": 8}], ["length", {"coef": 1.0}]]
    envs = make_envs(rewards=rewards)
    agent = make(envs, choose_by="probe-end")
    found = agent.evaluate()
    played = evaluate(agent.policy, envs, 64).episodes
    by_term = played.reward_terms["probe-end"].sum(-1).view(16, 4).argmax(1)
    by_return = played.returns.view(16, 4).argmax(1)
    assert not torch.equal(by_term, by_return)
    assert torch.equal(found.episodes.episode_id, by_term + 4 * torch.arange(16))
    with pytest.raises(
        ValueError, match=r"choose_by must be a reward term .*got 'quality'; known: length, probe-end"
    ):
        make(envs, choose_by="quality").evaluate()


def test_learning_is_an_evaluation_and_saving_keeps_the_policy(tmp_path: Path) -> None:
    agent = make(eval_envs=make_envs(), run_dir=tmp_path)
    before = [p.clone() for p in agent.policy.parameters()]
    result = agent.learn()
    assert result.evaluation is not None and result.optimizer_steps == 0
    assert result.history[0]["eval/objective/kl"] == best_of_n_kl(4)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
    agent.save(tmp_path / "saved")
    again = BestOfN.load(tmp_path / "saved", envs=make_envs())
    assert again.config == agent.config
    assert again.evaluate().metrics == agent.evaluate().metrics


def test_train_makes_environments_that_deal_n(tmp_path: Path) -> None:
    result = textenv.train(
        "best-of-n", task="probe-end", n=8, eval_episodes=32, num_envs=16, loggers=(), run_dir=tmp_path
    )
    found = result.evaluation
    assert found is not None
    assert found.metrics["return/mean"] > found.metrics["best_of_k/return@1"] + 0.2
    assert found.metrics["return/mean"] == pytest.approx(found.metrics["best_of_k/return@8"])
