"""Rejection fine-tuning: which samples are chosen, what a round learns, and whole runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.helpers import agents
from tests.helpers.agents import equal, weights
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.rft import RFTConfig, best_rows, distinct_rows
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import KLPenalty
from textenv.rewards.wrappers import wrap_reward

make_envs = partial(agents.make_envs, "rft")
make = partial(agents.make, "rft", episodes_per_iteration=32, minibatches=2)


# -- the choice ----------------------------------------------------------------------------------------------


def test_the_best_of_each_prompt_by_hand() -> None:
    prompts = torch.tensor([3, 7] * 10)
    returns = torch.arange(20.0)
    # Of the ten on each prompt the quantile 0.8 lies between the eighth and the ninth, which is the next.
    assert best_rows(returns, prompts, 0.8).tolist() == [16, 17, 18, 19]
    assert best_rows(returns, prompts, 0.95).tolist() == [18, 19]
    assert best_rows(returns, prompts, 1.0).tolist() == [18, 19]
    assert best_rows(returns, prompts, 0.0).tolist() == list(range(1, 20))  # but the least of all


def test_quantised_returns_keep_the_largest_and_never_the_least() -> None:
    prompts = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    returns = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert best_rows(returns, prompts, 0.5).tolist() == [3, 4, 5, 6, 7]
    assert best_rows(returns, prompts, 0.9).tolist() == [3, 4, 5, 6, 7]
    assert best_rows(torch.ones(4), torch.zeros(4, dtype=torch.int64), 0.5).tolist() == []


def test_a_small_kl_is_no_success() -> None:
    # Nothing succeeded on the second prompt; its returns differ by what the KL penalty paid.
    prompts = torch.tensor([0, 0, 1, 1])
    scores = torch.tensor([0.0, 1.0, 0.0, 0.0])
    returns = scores - torch.tensor([0.3, 0.1, 0.1, 0.2])
    assert best_rows(returns, prompts, 0.9, scores=scores).tolist() == [1]
    assert best_rows(returns, prompts, 0.9).tolist() == [1, 2]


def test_the_pool_knows_scores_without_the_kl_and_one_of_before_takes_its_returns() -> None:
    envs = wrap_reward(make_envs(rewards=[lambda completions, **_: [1.0] * len(completions)]), KLPenalty(0.5))
    agent = make(envs=envs)
    agent.iteration = 1
    with torch.no_grad():
        agent.policy.model.lm_head.weight.add_(torch.randn_like(agent.policy.model.lm_head.weight))
    episodes = agent.collect()
    agent.score(episodes)
    agent.advantages(episodes)
    assert agent.pool is not None and agent.pool["scores"].tolist() == [1.0] * 32
    assert len(agent.pool["returns"].unique()) > 1
    assert "rft/chosen" not in agent.update(agent.last_batch or agent.pool)
    older = agent.training_state()
    del older.tensors["pool/scores"]
    agent.load_training_state(older)
    assert torch.equal(agent.pool["scores"], agent.pool["returns"].double())


def test_every_improve_step_draws_an_order_of_its_own() -> None:
    agent = make(improve_steps=3, epochs=2)
    numbers = []
    for agent.iteration in (1, 2):
        for agent.improve_step in range(3):
            numbers += [agent.pass_number(epoch) for epoch in range(2)]
    assert numbers == list(range(6, 18))
    orders: list[tuple[int, ...]] = []

    def step(batch: Any) -> dict[str, float]:
        orders.append(tuple(batch.episodes.prompt_index.tolist()))
        return {}

    agent.pool = TrainingBatch(
        EpisodeBatch.from_ids([[1]] * 8, [[2]] * 8, prompt_index=torch.arange(8)),
        {
            "returns": torch.tensor([0.0, *[1.0] * 7]),
            "scores": torch.tensor([0.0, *[1.0] * 7]),
            "prompt": torch.zeros(8, dtype=torch.int64),
        },
    )
    agent.config = agent.config.replace(deduplicate=False)
    agent.optimizer_step = step  # type: ignore[method-assign]
    agent.update(agent.pool)
    # The same seven samples in every improve step: 3 steps of 2 passes of 2 minibatches.
    passes = [orders[i] + orders[i + 1] for i in range(0, 12, 2)]
    assert all(sorted(rows) == list(range(1, 8)) for rows in passes)
    assert len(set(passes)) == 6


def test_equal_samples_count_once() -> None:
    # The third is the first with its prompt cut elsewhere, the fourth the first again.
    episodes = EpisodeBatch.from_ids([[1], [1], [1, 5], [1]], [[5, 6], [5], [6], [5, 6]])
    assert distinct_rows(episodes, torch.arange(4)).tolist() == [0, 1, 2]
    assert distinct_rows(episodes, torch.tensor([3, 0])).tolist() == [3]


def test_the_percentile_rises_in_a_line() -> None:
    config = RFTConfig(improve_steps=3, start_percentile=0.8, end_percentile=0.9)
    assert [config.percentile(step) for step in range(3)] == pytest.approx([0.8, 0.85, 0.9])
    assert RFTConfig(improve_steps=1, start_percentile=0.7).percentile(0) == 0.7


# -- the learning --------------------------------------------------------------------------------------------


def test_it_trains_on_the_chosen_samples_of_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(improve_steps=1, minibatches=1, start_percentile=0.9, iterations=3)
    seen: list[EpisodeBatch] = []
    step = agent.optimizer_step

    def spy(batch: Any) -> dict[str, float]:
        seen.append(batch.episodes)
        return step(batch)

    monkeypatch.setattr(agent, "optimizer_step", spy)
    played: list[EpisodeBatch] = []
    collect = agent.collect
    monkeypatch.setattr(agent, "collect", lambda: played.append(collect()) or played[-1])
    agent.learn()
    assert len(seen) == 3
    for part in played:
        part.sampling = {}  # every round was sampled by other weights
    for round_ in range(3):
        pool = EpisodeBatch.concat(played[: round_ + 1])
        expected = set()
        for prompt in pool.prompt_index.unique().tolist():
            rows = (pool.prompt_index == prompt).nonzero().squeeze(-1)
            least = torch.quantile(pool.returns[rows], 0.9, interpolation="higher")
            for row in rows[
                (pool.returns[rows] >= least) & (pool.returns[rows] > pool.returns.min())
            ].tolist():
                expected.add(tuple(pool.input_ids[row, : pool.lengths[row]].tolist()))
        found = [
            tuple(ids[:n].tolist())
            for ids, n in zip(seen[round_].input_ids, seen[round_].lengths, strict=True)
        ]
        assert len(found) == len(set(found)) and set(found) == expected


def test_the_loss_is_the_mean_over_chosen_tokens() -> None:
    agent = make(improve_steps=1, minibatches=1, iterations=1)
    before = agent.policy.log_prob
    row = agent.learn().history[0]
    assert agent.pool is not None
    chosen = distinct_rows(agent.pool.episodes, best_rows(agent.pool["returns"], agent.pool["prompt"], 0.9))
    fresh = make()  # the same weights as at the start
    episodes = agent.pool.episodes.select(chosen)
    nll = -fresh.policy.log_prob(episodes).sum() / episodes.action_mask.sum()
    assert row["sft/nll"] == row["loss"] == pytest.approx(float(nll), rel=1e-5)
    assert row["rft/chosen"] == len(chosen) and row["rft/pool"] == 32
    assert float(-before(episodes).sum()) < float(nll) * float(episodes.action_mask.sum())


@pytest.mark.parametrize(("kept", "sizes"), [(None, [32, 64, 96]), (1, [32, 32, 32]), (2, [32, 64, 64])])
def test_how_long_samples_stay(kept: int | None, sizes: list[int]) -> None:
    agent = make(generations_kept=kept, iterations=3)
    assert [row["rft/pool"] for row in agent.learn().history] == sizes
    assert agent.pool is not None
    assert int(agent.pool["generation"].min()) == 3 - sizes[-1] // 32 + 1


def test_there_is_no_pool_to_save_before_the_first_iteration() -> None:
    agent = make()
    state = agent.training_state()
    assert state.values["pool"] is None
    assert not any(name.startswith("pool/") for name in state.tensors)


def test_where_nothing_differs_nothing_is_learned() -> None:
    envs = make_envs(rewards=[])
    agent = make(envs=envs)
    before = weights(agent)
    agent.learn()
    assert agent.optimizer_steps == 0
    assert equal(before, weights(agent))


def test_fewer_samples_than_minibatches() -> None:
    agent = make(minibatches=16, start_percentile=1.0, end_percentile=1.0, iterations=1, improve_steps=1)
    row = agent.learn().history[0]
    assert agent.optimizer_steps == min(16, row["rft/chosen"])


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt must be >= 2, got 1"),
        ({"episodes_per_iteration": 100}, r"a multiple of samples_per_prompt \(32\), got 100"),
        ({"start_percentile": 1.5}, r"start_percentile must be in \[0, 1\], got 1.5"),
        ({"end_percentile": 0.5}, r"end_percentile must be >= start_percentile \(0.9\), got 0.5"),
        ({"generations_kept": 0}, "generations_kept must be >= 1, got 0"),
        ({"improve_steps": 0}, "improve_steps must be >= 1, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RFTConfig(**settings)


def test_an_environment_that_deals_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match=r"make the environment with samples_per_prompt=8 .*got 2"):
        make(make_envs(samples_per_prompt=2))
