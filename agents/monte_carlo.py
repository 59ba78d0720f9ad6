"""Monte Carlo critic: Q and V regressed on Monte Carlo returns, logits shifted by Q - V.

One step of policy improvement over the policy that generated the data, without bootstrapping; the baseline
of ILQL (Snell et al. 2022, section 6, "MC returns"). Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from torch import Tensor

from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.ilql import ILQL, q_and_v
from textenv.agents.losses.advantages import monte_carlo
from textenv.agents.losses.ilql import ilql_awac_loss, ilql_cql_loss, ilql_q_loss
from textenv.agents.losses.masked import masked_squared_error
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.offline import MonteCarloConfig


@register_agent("monte-carlo")
class MonteCarloCritic(ILQL):
    """Q and V regressed on Monte Carlo returns of logged episodes; logits shifted by Q - V."""

    config_class = MonteCarloConfig
    config: MonteCarloConfig

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Squared errors of Q and V to the return to go + cloning + CQL (if ``cql_coef`` > 0)."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        log_probs, q, q_log_probs, target_q, values = q_and_v(self.policy, batch)
        returns, _ = monte_carlo(batch.episodes.rewards, mask, gamma=cfg.gamma, discount=cfg.discount)
        q_loss = ilql_q_loss(q, returns, mask, denominator=tokens)
        value_loss = masked_squared_error(values, returns, mask, tokens)
        awac, _ = ilql_awac_loss(log_probs, target_q, values, mask, beta=cfg.awac_beta, denominator=tokens)
        loss = q_loss + value_loss + cfg.awac_coef * awac
        stats = {"q_loss": q_loss, "value_loss": value_loss, "awac_loss": awac}
        if cfg.cql_coef:
            cql = ilql_cql_loss(q_log_probs, mask, denominator=tokens)
            loss = loss + cfg.cql_coef * cql
            stats["cql_loss"] = cql
        return loss, {f"monte_carlo/{name}": value.detach() for name, value in stats.items()}
