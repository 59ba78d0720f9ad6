"""The offline loop: minibatches of a data set in a fresh order each epoch, report."""

from __future__ import annotations

from torch import Tensor

from textenv.agents.base.agent import Agent
from textenv.agents.base.result import Clock
from textenv.agents.data.batch import TrainingBatch, epoch_order
from textenv.agents.settings.base import OfflineConfig


class OfflineAgent(Agent):
    """An agent that learns from a data set."""

    online = False
    config: OfflineConfig

    def planned_iterations(self) -> int:
        """One iteration is one optimizer step."""
        return self.planned_steps()

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.total_steps(len(self.dataset))

    def run_loop(self) -> None:
        """Pass over the data in a fresh order each epoch until the budget is spent or a callback stops."""
        cfg, rows = self.config, len(self.dataset)
        total, per_epoch = self.planned_iterations(), -(-rows // cfg.batch_size)
        order: tuple[int, Tensor] | None = None
        with self.open_loggers(total) as loggers:
            while self.iteration < total:
                epoch, position = divmod(self.iteration, per_epoch)
                if order is None or order[0] != epoch:
                    order = epoch, epoch_order(rows, seed=cfg.seed, epoch=epoch)
                index = order[1][position * cfg.batch_size : (position + 1) * cfg.batch_size]
                self.iteration += 1
                clock = Clock()
                row = self.step(self.batch(index))
                clock.lap("update")
                self.episodes_seen += len(index)
                row |= {"time/update": clock.seconds["update"], "lr": float(self.schedule.get_last_lr()[0])}
                if self.finish(row, loggers, last=self.iteration == total):
                    break

    def batch(self, index: Tensor) -> TrainingBatch:
        """The rows ``index`` of the data set."""
        return TrainingBatch(self.dataset.select(index))
