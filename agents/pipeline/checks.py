"""What the stages of the pipeline need, checked before the first one begins: days may lie before the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textenv.agents.checkpointing.needs import (
    check_model,
    check_optimizer,
    check_policy_options,
    check_writable,
    needed_by,
    quietly,
)
from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.data.ratings import as_reward_batch
from textenv.agents.loggers.registry import check_loggers
from textenv.utils.checks import check_device

if TYPE_CHECKING:
    from textenv.agents.pipeline.run import Pipeline


def check_needs(pipeline: Pipeline, todo: Sequence[str], *, ends: bool) -> None:
    """Check all that the stages need.

    Data sets are read and tokenized as the stages will do it, so a row that a later stage would refuse is
    found now. Nothing is written.

    Args:
        pipeline: the pipeline.
        todo: names of the stages that have to run.
        ends: whether the comparison of before and after follows.

    Raises:
        StageError: if a stage has no data or no model.
        ValueError: (or what the stage would raise) with a note on which stage needs what was found wrong.
    """
    cfg = pipeline.config
    check_writable(pipeline.run_dir)
    check_loggers(pipeline.loggers, pipeline.run_dir)
    if cfg.device is not None:
        check_device("device", cfg.device)
    if "sft" in todo:
        with needed_by("the stage 'sft'; no stage has begun"), quietly():
            check_optimizer("sft.optimizer", cfg.sft.optimizer)
            check_policy_options("sft_policy", cfg.sft_policy)
            model, dataset = pipeline.tuning_needs()
            if isinstance(model, str):
                check_model("model", model, pipeline.data.tokenizer)
            as_demonstrations(dataset, pipeline.data.tokenizer)
    for name, settings, field in (("reward-model", cfg.reward, "reward"), ("judge", cfg.judge, "judge")):
        if name in todo:
            with needed_by(f"the stage {name!r}; no stage has begun"), quietly():
                check_optimizer(f"{field}.optimizer", settings.optimizer)
                train, held_out = pipeline.scoring_needs(name)
                feedback, tokenizer = pipeline.data.feedback, pipeline.data.tokenizer
                if feedback is not None and feedback.make_scorer is not None:
                    tokenizer = feedback.make_scorer()[1]
                for dataset in (train, held_out):
                    if dataset is not None:
                        as_reward_batch(dataset, tokenizer, max_length=settings.max_length)
    if "rl" in todo:
        with needed_by("the stage 'rl'; no stage has begun"):
            check_optimizer("rl.optimizer", cfg.rl.optimizer)
            check_policy_options("rl_policy", cfg.rl_policy)
            if cfg.policy is not None:
                check_model("policy", cfg.policy, pipeline.data.tokenizer)
            for field in ("reward_model", "judge_model"):
                if getattr(cfg, field) is not None:
                    check_model(field, getattr(cfg, field), scores=True)
            with quietly():
                pipeline.envs([], split="train").close()
    if ends:
        with needed_by("the stage 'rl'; no stage has begun"), quietly():
            pipeline.envs([], split="validation").close()
            pipeline.people()
