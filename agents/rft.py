"""Rejection fine-tuning (RFT): generate, select the best samples of each prompt, fine-tune on them, repeat.

Yuan et al. 2023, "Scaling relationship on learning mathematical reasoning with large language models" (RFT);
Gulcehre et al. 2023, "Reinforced self-training for language modeling" (ReST: one grow step, then improve
steps with rising thresholds). Shape letters: B episodes, b selected ones, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textenv.agents.base.groups import SampleChooser, world_index
from textenv.agents.base.metrics import mean_row
from textenv.agents.base.registry import register_agent
from textenv.agents.checkpointing.state import TrainingState
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.preferences import tokens_and_rule
from textenv.agents.evaluation.task_returns import kl_wrappers, task_returns
from textenv.agents.losses.policy_gradient import sft_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.samples import RFTConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("rft")
class RFT(SampleChooser):
    """Rejection fine-tuning (ReST): supervised fine-tuning on the best samples of the policy."""

    config_class = RFTConfig
    config: RFTConfig
    pool: TrainingBatch | None
    """Samples to select from, with (B,) ``returns``, ``scores`` (returns without KL penalties), ``prompt``
    and ``generation`` (the iteration that generated them)."""
    improve_step = 0
    """Index of the improve step in the iteration."""

    def setup(self) -> None:
        """As in the base class, with an empty pool."""
        super().setup()
        if kl_wrappers(self.envs):
            self.reference = self.policy.reference()
        self.pool = None

    def planned_steps(self) -> int:
        """Largest number of optimizer steps of the whole run: few samples make fewer minibatches."""
        return super().planned_steps() * self.config.improve_steps

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """The episodes without further tensors; they join the pool, which drops old generations.

        The targets of the loss are selected in ``update``.
        """
        kept = self.config.generations_kept
        generation = torch.full((len(episodes),), self.iteration, device=episodes.device)
        fresh = TrainingBatch(
            tokens_and_rule(episodes),
            {
                "returns": episodes.returns,
                "scores": task_returns(episodes, self.envs),
                "prompt": world_index(episodes, self.envs),
                "generation": generation,
            },
        )
        if self.pool is None or kept == 1:
            self.pool = fresh
        else:
            known = self.pool.to(episodes.device)
            if kept is not None:
                known = known.select((known["generation"] > self.iteration - kept).nonzero().squeeze(-1))
            self.pool = TrainingBatch(
                EpisodeBatch.concat([known.episodes, fresh.episodes]),
                {name: torch.cat([known[name], fresh[name]]) for name in fresh.tensors},
            )
        return TrainingBatch(episodes)

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """Select the best samples and fine-tune on them, ``improve_steps`` times.

        If all returns in the pool are equal, nothing is selected and no step is taken.
        """
        assert self.pool is not None
        rows: list[dict[str, float]] = []
        pool = self.pool
        for step in range(self.config.improve_steps):
            self.improve_step = step
            percentile = self.config.percentile(step)
            chosen = best_rows(pool["returns"], pool["prompt"], percentile, scores=pool["scores"])
            if self.config.deduplicate:
                chosen = distinct_rows(self.pool.episodes, chosen)
            if len(chosen):
                row = super().update(TrainingBatch(self.pool.episodes.select(chosen)))
                row["rft/return"] = float(self.pool["returns"][chosen].mean())
                rows.append({**row, "rft/chosen": float(len(chosen))})
        return {"rft/pool": float(len(self.pool)), **mean_row(rows)}

    def pass_number(self, epoch: int) -> int:
        """Number of the pass in the whole run, improve steps counted."""
        cfg = self.config
        return (self.iteration * cfg.improve_steps + self.improve_step) * cfg.epochs + epoch

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Mean negative log-likelihood over the action tokens of the optimizer step."""
        loss = sft_loss(self.policy(batch.episodes).log_probs, batch.mask, denominator=totals.tokens)
        return loss, {"sft/nll": loss.detach()}

    # -- checkpoints -----------------------------------------------------------------------------------------

    def training_state(self) -> TrainingState:
        """With the pool, if the next iteration uses it again."""
        state = super().training_state()
        state.values["pool"] = None if self.pool is None else self.pool.episodes.sampling
        if self.pool is not None and self.config.generations_kept != 1:
            state.tensors |= {f"pool/{name}": getattr(self.pool.episodes, name) for name in POOL}
            state.tensors |= {f"pool/{name}": tensor for name, tensor in self.pool.tensors.items()}
        return state

    def load_training_state(self, state: TrainingState) -> None:
        """Restore the pool."""
        super().load_training_state(state)
        prefix = "pool/"
        found = {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}
        if found:
            episodes = EpisodeBatch(
                input_ids=found.pop("input_ids"),
                attention_mask=found.pop("attention_mask"),
                prompt_lengths=found.pop("prompt_lengths"),
                action_mask=found.pop("action_mask"),
                sampling=state.values["pool"],
            )
            found.setdefault("scores", found["returns"].double())  # absent in early checkpoints
            self.pool = TrainingBatch(episodes, found)


POOL = ("input_ids", "attention_mask", "prompt_lengths", "action_mask")
"""Fields of episodes that the pool keeps."""


def best_rows(returns: Tensor, prompts: Tensor, percentile: float, *, scores: Tensor | None = None) -> Tensor:
    """Rows whose return is at or above a quantile of the returns of their prompt: (B,) -> (b,) int64.

    Rows with the lowest score of all are never selected. So nothing is selected on prompts where nothing
    succeeded, or from a pool with equal scores.

    Args:
        returns: (B,).
        prompts: (B,) int64, index of the prompt.
        percentile: the quantile, in [0, 1].
        scores: (B,) returns without KL penalties, by default the returns. A smaller KL alone is no success.

    Example:
        >>> returns = torch.tensor([0.0, 0.2, 0.2, 0.7, 0.0, 0.0])
        >>> best_rows(returns, torch.tensor([5, 5, 5, 5, 8, 8]), 0.5).tolist()
        [1, 2, 3]
    """
    # "higher" takes one of the returns; an interpolated value could differ from it by rounding.
    index = prompts.unique(return_inverse=True)[1]
    thresholds = [
        torch.quantile(returns[index == i].double(), percentile, interpolation="higher")
        for i in range(int(index.max()) + 1)
    ]
    reached = returns.double() >= torch.stack(thresholds)[index]
    scores = returns if scores is None else scores
    return (reached & (scores > scores.min())).nonzero().squeeze(-1)


def distinct_rows(episodes: EpisodeBatch, rows: Tensor) -> Tensor:
    """Rows without duplicates (equal prompt and tokens), the first one is kept: (b,) int64 -> (c,) int64."""
    ids, lengths = episodes.input_ids[rows].tolist(), episodes.lengths[rows].tolist()
    starts = episodes.prompt_lengths[rows].tolist()
    first: dict[tuple[int, ...], int] = {}
    for row, tokens, length, start in zip(rows.tolist(), ids, lengths, starts, strict=True):
        first.setdefault((start, *tokens[:length]), row)
    return torch.tensor(list(first.values()), dtype=torch.int64, device=rows.device)
