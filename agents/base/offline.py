"""The offline training loop: minibatches of a data set, in a new order per epoch."""

from __future__ import annotations

from torch import Tensor

from textenv.agents.base.agent import Agent
from textenv.agents.base.metrics import Timer
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

    def train_loop(self) -> None:
        """Optimizer steps on the data, in a new order per epoch; until the end or until a callback stops."""
        cfg, rows = self.config, len(self.dataset)
        per_epoch = -(-rows // cfg.batch_size)
        order: tuple[int, Tensor] | None = None
        while self.iteration < self.planned_iterations() and not self.stopped:
            epoch, position = divmod(self.iteration, per_epoch)
            if order is None or order[0] != epoch:
                order = epoch, epoch_order(rows, seed=cfg.seed, epoch=epoch)
            index = order[1][position * cfg.batch_size : (position + 1) * cfg.batch_size]
            self.iteration += 1
            timer = Timer()
            with timer.measure("update"):
                metrics = self.optimizer_step(self.batch(index))
            self.episodes_seen += len(index)
            metrics |= {"time/update": timer.seconds["update"], "lr": float(self.schedule.get_last_lr()[0])}
            self.end_iteration(metrics)

    def batch(self, index: Tensor) -> TrainingBatch:
        """The rows ``index`` of the data set."""
        return TrainingBatch(self.dataset.select(index))
