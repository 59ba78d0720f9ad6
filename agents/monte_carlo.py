"""Monte Carlo critic: Q and V regressed on the returns that followed, decoding shifted by their difference.

One step of policy improvement over the policy that wrote the data, without bootstrapping: what ILQL is
measured against (Snell et al. 2022, section 6, "MC returns"). Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.ilql import ILQL
from textenv.agents.losses.advantages import discounted_sums
from textenv.agents.losses.ilql import ilql_awac_loss, ilql_cql_loss, ilql_q_loss
from textenv.agents.losses.policy_gradient import masked_squared_error
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.offline import MonteCarloConfig


@register_agent("monte-carlo")
class MonteCarloCritic(ILQL):
    """Q and V learned from Monte Carlo returns of logged episodes; acts with the language model shifted."""

    config_class = MonteCarloConfig
    config: MonteCarloConfig

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Squared errors of Q and V against the discounted return to go, cloning, and by option CQL."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        out = self.policy(batch.episodes, hidden=True)
        assert out.hidden is not None
        # The state of the action in column p is the hidden state of column p - 1, which emits it.
        found = self.policy.heads(out.hidden[:, :-1][mask[:, 1:]], batch.episodes.input_ids[mask])

        def spread(values: Tensor) -> Tensor:
            return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
                mask, values
            )

        returns = discounted_sums(batch.episodes.rewards, mask, cfg.gamma)
        state_values, target_q = spread(found.state_values), spread(found.target_q)
        q_loss = ilql_q_loss([spread(q) for q in found.q], returns, mask, denominator=tokens)
        value_loss = masked_squared_error(state_values, returns, mask, tokens)
        awac, _ = ilql_awac_loss(
            out.log_probs, target_q, state_values, mask, beta=cfg.awac_beta, denominator=tokens
        )
        loss = q_loss + value_loss + cfg.awac_coef * awac
        stats = {"q_loss": q_loss, "value_loss": value_loss, "awac_loss": awac}
        if cfg.cql_coef:
            cql = ilql_cql_loss([spread(q) for q in found.q_log_probs], mask, denominator=tokens)
            loss = loss + cfg.cql_coef * cql
            stats["cql_loss"] = cql
        return loss, {f"monte_carlo/{name}": value.detach() for name, value in stats.items()}
