"""Deprecated hooks of policy-gradient agents give the numbers of ``advantages`` and ``loss``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.agents import equal, make_envs, tiny, weights
from textenv.agents import losses
from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.losses.advantages import batch_mean
from textenv.agents.losses.policy_gradient import log_ratio, ratio_stats, reinforce_loss
from textenv.agents.reinforce import Reinforce, ReinforceConfig

SETTINGS = ReinforceConfig(
    iterations=2, episodes_per_iteration=16, learning_rate=1e-2, entropy_coef=0.1, whiten_advantages=True
)


def trained(agent: type[PolicyGradientAgent]) -> list[torch.Tensor]:
    made = agent(tiny(), envs=make_envs("reinforce"), config=SETTINGS)
    made.learn()
    return weights(made)


def test_an_agent_with_estimate_and_objective_still_learns_the_same() -> None:
    with pytest.warns(DeprecationWarning) as said:

        class Old(PolicyGradientAgent):
            config_class = ReinforceConfig

            def estimate(self, episodes: Any, rewards: Any, old: Any) -> Any:
                return batch_mean(rewards, episodes.action_mask, gamma=self.config.gamma)

            def objective(self, new: Any, batch: Any, totals: Any) -> Any:
                mask, tokens = batch.mask, totals.tokens
                loss = reinforce_loss(new.log_probs, batch["advantages"], mask, denominator=tokens)
                difference = log_ratio(new.log_probs, batch["old_log_probs"], mask)
                found = ratio_stats(difference, mask, denominator=tokens)
                return loss, {"policy/loss": loss.detach(), "policy/approx_kl": found["approx_kl"]}

    assert [str(one.message) for one in said] == [
        "Old.estimate is deprecated and will be removed in version 0.3: use advantages",
        "Old.objective is deprecated and will be removed in version 0.3: use loss",
    ]
    assert equal(trained(Old), trained(Reinforce))


def test_an_agent_without_them_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    class New(Reinforce):
        def loss(self, batch: Any, totals: Any) -> Any:
            return super().loss(batch, totals)

    assert [str(one.message) for one in recwarn] == []


@pytest.mark.parametrize("name", ["own", "next_own_values", "mean_of_rows", "weighted_mean"])
def test_old_names_of_losses_work_with_a_warning(name: str) -> None:
    with pytest.warns(
        DeprecationWarning,
        match=f"textenv.agents.losses.{name} is deprecated and will be removed in version 0.3",
    ):
        function = getattr(losses, name)
    assert callable(function)
    assert name not in dir(losses)
