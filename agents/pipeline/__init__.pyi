"""Where the public names live; they load on first use."""

from .config import DataConfig, PipelineConfig
from .run import Pipeline, PipelineResult, run_pipeline
from .stages import StageError

__all__ = [
    "DataConfig",
    "Pipeline",
    "PipelineConfig",
    "PipelineResult",
    "StageError",
    "run_pipeline",
]
