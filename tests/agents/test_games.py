"""Agents on games: episodes with a partner reach training with all their rewards."""

from __future__ import annotations

import torch

import textenv


def test_rewards_and_kl_are_added_to_those_of_the_partner() -> None:
    result = textenv.train(
        "ppo",
        task="guess-number",
        reward=[["length", {"coef": 0.5}]],
        iterations=1,
        episodes_per_iteration=8,
        minibatches=1,
        eval_episodes=4,
        kl_coef=0.1,
        kl_placement="reward",
        start=False,
        loggers=(),
    )
    batch = result.agent.last_batch.episodes
    terms = {name: values for name, values in batch.reward_terms.items() if not name.startswith("raw/")}
    assert set(terms) == {"partner", "length", "kl"}
    assert (batch.reward_terms["length"].sum(-1) > 0).all()
    torch.testing.assert_close(batch.rewards, sum(terms.values()))


def test_a_partner_with_the_name_of_a_task_brings_its_model_and_arguments() -> None:
    result = textenv.train(
        "ppo",
        partner=["guess-number", {"top": 5}],
        iterations=1,
        episodes_per_iteration=8,
        minibatches=1,
        eval_episodes=4,
        start=False,
        loggers=(),
    )
    assert len(result.agent.envs.unwrapped.tokenizer) == 5 + 7 + 10 + 3
    assert result.agent.policy.model.config.vocab_size == 25
