"""Checks of everything that the pipeline's stages need, before the first stage starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textenv.agents.checkpointing.needs import (
    check_model,
    check_optimizer,
    check_policy_options,
    check_writable,
    needed_by,
    quietly,
)
from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.data.reward_records import as_reward_batch
from textenv.agents.loggers.registry import check_loggers
from textenv.agents.pipeline.hacking_watch import scipy_stats
from textenv.agents.pipeline.inputs import StageInputs
from textenv.utils.checks import check_device


def check_needs(
    inputs: StageInputs, todo: Sequence[str], run_dir: Path, loggers: Sequence[Any], *, ends: bool
) -> None:
    """Check all that the stages need.

    Data sets are read and tokenized as the stages will do it, so a row that a later stage would refuse is
    found now. Nothing is written.

    Args:
        inputs: of the stages.
        todo: names of the stages that have to run.
        run_dir: the pipeline's folder.
        loggers: of every stage.
        ends: whether the comparison of before and after follows.

    Raises:
        StageError: if a stage has no data or no model.
        ValueError: (or what the stage would raise) with a note on which stage needs what was found wrong.
    """
    cfg = inputs.config
    check_writable(run_dir)
    check_loggers(loggers, run_dir)
    if cfg.device is not None:
        check_device("device", cfg.device)
    if "sft" in todo:
        with needed_by("the stage 'sft'; no stage has begun"), quietly():
            check_optimizer("sft.optimizer", cfg.sft.optimizer)
            check_policy_options("sft_policy", cfg.sft_policy)
            model, dataset = inputs.fine_tuning()
            if isinstance(model, str):
                check_model("model", model, inputs.data.tokenizer)
            as_demonstrations(dataset, inputs.data.tokenizer)
    for name, settings, field in (("reward-model", cfg.reward, "reward"), ("judge", cfg.judge, "judge")):
        if name in todo:
            with needed_by(f"the stage {name!r}; no stage has begun"), quietly():
                check_optimizer(f"{field}.optimizer", settings.optimizer)
                train, held_out = inputs.scoring(name)
                feedback, tokenizer = inputs.data.feedback, inputs.data.tokenizer
                if feedback is not None and feedback.make_scorer is not None:
                    tokenizer = feedback.make_scorer()[1]
                for dataset in (train, held_out):
                    if dataset is not None:
                        as_reward_batch(dataset, tokenizer, max_length=settings.max_length)
    if "rl" in todo:
        with needed_by("the stage 'rl'; no stage has begun"):
            check_optimizer("rl.optimizer", cfg.rl.optimizer)
            check_policy_options("rl_policy", cfg.rl_policy)
            if inputs.judged:
                scipy_stats()
            if cfg.policy is not None:
                check_model("policy", cfg.policy, inputs.data.tokenizer)
            for field in ("reward_model", "judge_model"):
                if getattr(cfg, field) is not None:
                    check_model(field, getattr(cfg, field), scores=True)
            inputs.envs([], split="train").close()
    if ends:
        with needed_by("the stage 'rl'; no stage has begun"):
            inputs.envs([], split="validation").close()
            inputs.human_reference()
