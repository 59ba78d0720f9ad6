"""Experiment trackers as loggers: Weights & Biases and TensorBoard, each imported when it is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textenv.agents.loggers.registry import RunInfo

if TYPE_CHECKING:
    import wandb


class WandbLogger:
    """Logs to Weights & Biases, offline where no key is set up (``wandb sync`` uploads such a run later).

    ``WANDB_MODE`` and the other variables of wandb work as usual. A resumed run keeps its id,
    which is kept in the run's folder.

    Args:
        info: the run; ``info.run_dir`` is where wandb keeps its files, None for its own default.
        project: project of the run.
        kwargs: passed on to ``wandb.init``.
    """

    def __init__(self, info: RunInfo, *, project: str = "textenv", **kwargs: Any) -> None:
        import wandb

        if (
            "mode" not in kwargs
            and "WANDB_MODE" not in os.environ
            and not wandb.login(prompt=False, verify=False)
        ):
            kwargs["mode"] = "offline"
        if info.run_dir is not None:
            info.run_dir.mkdir(parents=True, exist_ok=True)
            kwargs.setdefault("dir", str(info.run_dir))
            id_file = info.run_dir / "wandb-id.txt"
            if info.resume_step is not None and id_file.exists():
                kwargs = {"id": id_file.read_text().strip(), "resume": "allow", **kwargs}
        kwargs = {"name": info.name, "config": info.config, "reinit": "create_new", **kwargs}
        self.run: wandb.Run = wandb.init(project=project, **kwargs)
        if info.run_dir is not None:
            (info.run_dir / "wandb-id.txt").write_text(self.run.id + "\n")
        # wandb's own step only grows; a resumed run goes back to its checkpoint, so ours is an ordinary
        # metric.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one row of numbers."""
        self.run.log({**metrics, "step": step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a ``wandb.Table``."""
        import wandb

        self.run.log(
            {name: wandb.Table(columns=list(columns), data=[list(row) for row in rows]), "step": step}
        )

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class TensorBoardLogger:
    """Logs to TensorBoard, into the folder ``tensorboard`` of the run.

    Args:
        info: the run; it must have a folder.
        kwargs: passed on to ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        ImportError: if TensorBoard is not installed.
        ValueError: if the run has no folder.
    """

    def __init__(self, info: RunInfo, **kwargs: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "the logger 'tensorboard' needs TensorBoard: pip install 'textenv[tensorboard]'"
            ) from error
        if info.run_dir is None:
            raise ValueError("the logger 'tensorboard' needs a run_dir, got None")
        purge = None if info.resume_step is None else info.resume_step + 1
        kwargs = {"log_dir": str(info.run_dir / "tensorboard"), "purge_step": purge, **kwargs}
        self.writer = SummaryWriter(**kwargs)
        self.writer.add_text("config", _as_code(info.config))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one row of numbers."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log the rows as text: JSON in a code block, so that generated text is shown and not rendered."""
        self.writer.add_text(name, _as_code([dict(zip(columns, row, strict=True)) for row in rows]), step)

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.writer.close()


def _as_code(value: Any) -> str:
    """Markdown code block (by indentation, which no text can close) of a JSON value."""
    return "\n".join("    " + line for line in json.dumps(value, indent=2, ensure_ascii=False).splitlines())
