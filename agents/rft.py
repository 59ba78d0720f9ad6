"""Rejection fine-tuning: generate, keep the best of each prompt, fine-tune on it; again, ever choosier.

Yuan et al. 2023, "Scaling relationship on learning mathematical reasoning with large language models" (RFT);
Gulcehre et al. 2023, "Reinforced self-training for language modeling" (ReST: grow, then improve in steps).
Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textenv.agents.base.groups import SampleChooser
from textenv.agents.base.metrics import mean_row
from textenv.agents.base.registry import register_agent
from textenv.agents.checkpointing.state import TrainingState
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.preferences import tokens_and_rule
from textenv.agents.evaluation.task_scores import kl_wrappers, task_scores
from textenv.agents.losses.policy_gradient import sft_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.samples import RFTConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("rft")
class RFT(SampleChooser):
    """Rejection fine-tuning (ReST): supervised fine-tuning on the best of the policy's own samples."""

    config_class = RFTConfig
    config: RFTConfig
    pool: TrainingBatch | None
    """Samples to choose from, with (B,) ``returns``, ``scores`` (returns without a KL penalty), ``prompt``
    and the ``generation`` that they are from."""
    improve_step = 0
    """Which improve step of the iteration it is."""

    def setup(self) -> None:
        """Begin with an empty pool."""
        super().setup()
        if kl_wrappers(self.envs):
            self.reference = self.policy.reference()
        self.pool = None

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run, at most: few samples make fewer minibatches."""
        return super().planned_steps() * self.config.improve_steps

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """The episodes as they are; they join the pool, and those that have been there too long leave it."""
        kept = self.config.generations_kept
        generation = torch.full((len(episodes),), self.iteration, device=episodes.device)
        fresh = TrainingBatch(
            tokens_and_rule(episodes),
            {
                "returns": episodes.returns,
                "scores": task_scores(episodes, self.envs),
                "prompt": episodes.prompt_index,
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
        """Choose and train, ``improve_steps`` times; from a pool in which all earned the same nothing."""
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
        """Number of a pass in the whole run: each improve step has passes of its own."""
        cfg = self.config
        return (self.iteration * cfg.improve_steps + self.improve_step) * cfg.epochs + epoch

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Mean negative log-likelihood over the tokens of the optimizer step."""
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
            found.setdefault("scores", found["returns"].double())  # the oldest checkpoints have none
            self.pool = TrainingBatch(episodes, found)


POOL = ("input_ids", "attention_mask", "prompt_lengths", "action_mask")
"""What the pool keeps of episodes."""


def best_rows(returns: Tensor, prompts: Tensor, percentile: float, *, scores: Tensor | None = None) -> Tensor:
    """Rows whose return reaches a quantile of their prompt's returns: (B,), (B,) int64 -> (b,) int64.

    The least score of all never counts, so that prompts on which nothing succeeded teach nothing, and
    neither does a pool in which all are alike. Scores are the returns without a KL penalty, by default the
    returns: a KL that is a little less than others' is no success.

    Example:
        >>> returns = torch.tensor([0.0, 0.2, 0.2, 0.7, 0.0, 0.0])
        >>> best_rows(returns, torch.tensor([5, 5, 5, 5, 8, 8]), 0.5).tolist()
        [1, 2, 3]
    """
    # The group's next higher return: no rounding of an interpolation lies between it and what it names.
    index = prompts.unique(return_inverse=True)[1]
    thresholds = [
        torch.quantile(returns[index == i].double(), percentile, interpolation="higher")
        for i in range(int(index.max()) + 1)
    ]
    reached = returns.double() >= torch.stack(thresholds)[index]
    scores = returns if scores is None else scores
    return (reached & (scores > scores.min())).nonzero().squeeze(-1)


def distinct_rows(episodes: EpisodeBatch, rows: Tensor) -> Tensor:
    """The first of equal episodes among some rows: (b,) int64 -> (c,) int64."""
    ids, lengths = episodes.input_ids[rows].tolist(), episodes.lengths[rows].tolist()
    starts = episodes.prompt_lengths[rows].tolist()
    first: dict[tuple[int, ...], int] = {}
    for row, tokens, length, start in zip(rows.tolist(), ids, lengths, starts, strict=True):
        first.setdefault((start, *tokens[:length]), row)
    return torch.tensor(list(first.values()), dtype=torch.int64, device=rows.device)
