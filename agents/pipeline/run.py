"""The pipeline of RLHF in one call: supervised fine-tuning, reward model (and judge), reinforcement learning.

run_dir/
    pipeline.json           settings
    sft/ reward-model/ judge/ rl/
        stage.json          what the stage was made from; when it is finished also its figures
        model/              what the stage made
        metrics.jsonl, checkpoints/, ...
    results.json            before and after, and figures of human texts
    tables/samples.jsonl    the same prompts before and after
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textenv.agents.base.callbacks import Callback
from textenv.agents.checkpointing.fresh_start import fresh_start
from textenv.agents.checkpointing.needs import check_writable
from textenv.agents.checkpointing.run_folder import STAGES, RunFolder
from textenv.agents.distributed import process_group
from textenv.agents.distributed.devices import device_kwargs
from textenv.agents.evaluation.before_after import BeforeAfter, compare
from textenv.agents.pipeline.checks import check_needs
from textenv.agents.pipeline.config import DataConfig, PipelineConfig
from textenv.agents.pipeline.hacking_watch import BEST, RewardHackingWatch
from textenv.agents.pipeline.inputs import StageInputs
from textenv.agents.pipeline.stages import Stage, StageError, StageFolders
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.ppo import PPO
from textenv.agents.reports.recorder import RunReport, report_at_end
from textenv.agents.reward_model import RewardModelAgent
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.agents.sft import SFT
from textenv.data.sources import HELD_OUT_SHARE
from textenv.modeling.pretrained import trusting
from textenv.utils.json_files import write_json
from textenv.utils.redaction import masked

__all__ = [
    "STAGES",
    "DataConfig",
    "Pipeline",
    "PipelineConfig",
    "PipelineResult",
    "StageError",
    "run_pipeline",
]

LEAST_REPETITION = 0.005
"""Smallest limit for the fraction of repeated trigrams: short human texts have almost none."""


@dataclass(kw_only=True)
class PipelineResult:
    """What ``run_pipeline`` returns."""

    run_dir: Path
    """The run's folder."""
    stages: dict[str, dict[str, Any]]
    """Stage -> its figures: ``seconds``, ``reused``, ``metrics``."""
    comparison: BeforeAfter | None
    """Before and after, if the last stage is there."""


def run_pipeline(
    config: PipelineConfig,
    run_dir: str | os.PathLike[str],
    *,
    loggers: Sequence[Any] = ("rich",),
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> PipelineResult:
    """Run the stages in ``run_dir``; finished ones made from the same settings are reused, others resumed.

    Args:
        config: settings.
        run_dir: the run's folder.
        loggers: of every stage, see ``textenv.agents.loggers.registry.make_loggers``.
        overwrite: repeat stages that were made with other settings; their folders are emptied.
        trust_remote_code: whether code that comes with models may run, in every stage.

    Raises:
        StageError: if a stage's folder was made from other settings (it names them), or a stage that is not
            run is not finished, or a stage would have no data or model; if a launcher started
            several processes.
        ValueError: if data, a model, a reward, a split or a setting that any stage needs is invalid.
            All this is found before the first stage begins.
    """
    process_group.start()
    if process_group.world_size() > 1:
        raise StageError(
            f"a pipeline needs one process, got {process_group.world_size()}; its stages can be trained in "
            "several, one by one: textenv sft, textenv reward-model, textenv train"
        )
    check_writable(folder := RunFolder(run_dir).path)
    with trusting(trust_remote_code):
        return Pipeline(config, folder, loggers=loggers, overwrite=overwrite).run()


class Pipeline:
    """The stages of a run; see ``run_pipeline``."""

    def __init__(
        self, config: PipelineConfig, run_dir: Path, *, loggers: Sequence[Any] = (), overwrite: bool = False
    ) -> None:
        self.config, self.run_dir, self.loggers, self.overwrite = config, run_dir, loggers, overwrite
        self.inputs = StageInputs(config)
        self.figures: dict[str, dict[str, Any]] = {}
        self.folders = StageFolders(run_dir, config, overwrite=overwrite)

    def planned(self) -> list[Stage]:
        """The stages up to the last one asked for, without those whose model is given."""
        cfg, feedback = self.config, self.inputs.data.feedback
        last = max(STAGES.index(stage) for stage in cfg.stages)
        # A scorer that begins as the policy's trunk depends on the fine-tuning.
        trunk = ("sft",) if feedback is None or feedback.make_scorer is None else ()
        judged = cfg.judge_model is None and self.inputs.judged
        watch = {name: getattr(cfg, name) for name in ("kl_limit", "repetition_limit", "stop_when_hacked")}
        env = {name: cfg.to_dict()[name] for name in ("rewards", "num_envs", "max_new_tokens")}
        given = [watch, env, cfg.rl_policy.to_dict(), cfg.policy, cfg.reward_model, cfg.judge_model]
        pairs: list[Any] = [cfg.data.pairs, cfg.data.ratings, cfg.data.held_out]
        judged_by: list[Any] = [cfg.data.judge, cfg.data.held_out]
        if cfg.task is None or cfg.data.prompts is not None:
            given += [self.inputs.task_kwargs["data"], self.inputs.task_kwargs["validation"]]
        if cfg.data.eval_prompts is not None:
            given.append(cfg.data.eval_prompts)
        if cfg.data.validation_share != HELD_OUT_SHARE:
            pairs.append(cfg.data.validation_share)
            judged_by.append(cfg.data.validation_share)
        stages = [
            Stage("sft", cfg.sft, [cfg.model, cfg.data.sft, cfg.sft_policy.to_dict()]),
            Stage("reward-model", cfg.reward, pairs, trunk),
            Stage("judge", cfg.judge, judged_by, trunk),
            Stage("rl", cfg.rl, given, STAGES[:3]),
        ]
        wanted = (cfg.policy is None, cfg.reward_model is None, judged, True)
        return [stage for stage, want in zip(stages[: last + 1], wanted, strict=False) if want]

    def run(self) -> PipelineResult:
        """All stages up to the last one asked for; after the last of all, before and after.

        What every stage needs is checked before the first one begins.
        """
        cfg, folders = self.config, self.folders
        plan = {stage.name: stage for stage in self.planned()}
        todo = [name for name, stage in plan.items() if folders.finished(stage) is None]
        check_needs(self.inputs, todo, self.run_dir, self.loggers, ends="rl" in plan)
        with fresh_start(self.run_dir):
            write_json(self.run_dir / "pipeline.json", masked(cfg.to_dict()))
            return self.run_stages(plan)

    def run_stages(self, plan: Mapping[str, Stage]) -> PipelineResult:
        """The stages of a plan that was checked."""
        cfg, result = self.config, PipelineResult(run_dir=self.run_dir, stages=self.figures, comparison=None)
        last = max(STAGES.index(stage) for stage in cfg.stages)
        policy = cfg.policy or self.stage(plan["sft"], self.fine_tune)
        if last == 0:
            return result
        reward = cfg.reward_model or self.stage(
            plan["reward-model"], lambda folder: self.score_model("reward-model", folder, policy)
        )
        if last == 1:
            return result
        judge = cfg.judge_model
        if "judge" in plan:
            judge = self.stage(plan["judge"], lambda folder: self.score_model("judge", folder, policy))
        if last == 2:
            return result
        final = self.stage(plan["rl"], lambda folder: self.reinforce(folder, policy, reward, judge))
        result.comparison = compare(
            before=policy,
            after=final,
            envs=self.inputs.envs([reward_spec(reward)], split="validation"),
            judge=None if judge is None else reward_spec(judge),
            episodes=cfg.final_episodes,
            seed=cfg.final_seed,
            human_reference=self.inputs.human_reference(),
        )
        result.comparison.save(self.run_dir, stages=self.figures)
        if cfg.rl.report:
            report_at_end(self.run_dir)
        return result

    # -- the stages ------------------------------------------------------------------------------------------

    def fine_tune(self, folder: Path) -> dict[str, float]:
        """Supervised fine-tuning, or next-token pretraining of a model that begins with random weights."""
        cfg = self.config
        model, dataset = self.inputs.fine_tuning()
        agent = SFT(
            model,
            dataset=dataset,
            config=cfg.sft,
            tokenizer=self.inputs.data.tokenizer,
            policy_kwargs=self.policy_kwargs(cfg.sft_policy),
            **self.common(folder),
        )
        result = agent.resume(missing="start")
        agent.policy.save(folder / "model")
        return {"nll": result.history[-1]["sft/nll"]} if result.history else {}

    def score_model(self, name: str, folder: Path, policy: str) -> dict[str, float]:
        """The reward model or the judge: on the task's own small scorer, or on the policy's trunk."""
        cfg, feedback = self.config, self.inputs.data.feedback
        settings = cfg.reward if name == "reward-model" else cfg.judge
        train, held_out = self.inputs.scoring(name)
        model: Any = policy
        tokenizer = None
        if feedback is not None and feedback.make_scorer is not None:
            model, tokenizer = feedback.make_scorer()
        agent = RewardModelAgent(
            model,
            dataset=train,
            eval_dataset=held_out,
            config=settings,
            tokenizer=tokenizer,
            policy_kwargs=device_kwargs(cfg.device),
            **self.common(folder),
        )
        agent.resume(missing="start")
        agent.policy.save(folder / "model")
        if agent.eval_dataset is None:
            return {}
        found = agent.evaluate()
        write_json(folder / "evaluation.json", found.to_dict())
        return found.metrics

    def reinforce(self, folder: Path, policy: str, reward: str, judge: str | None) -> dict[str, float]:
        """PPO against the reward model, watched by the judge; the result is the best policy by the judge."""
        cfg = self.config
        envs = self.inputs.envs([reward_spec(reward)], split="train")
        eval_envs = self.inputs.envs([reward_spec(reward)], split="validation")
        callbacks: list[Callback] = []
        if judge is not None:
            human = self.inputs.human_reference()
            repetition = cfg.repetition_limit
            if repetition is None and human is not None:
                repetition = 2 * max(LEAST_REPETITION, BeforeAfter.repetition(human))
            limits = {"objective/kl": cfg.kl_limit}
            if repetition is not None:
                limits["text/repetition"] = repetition
            callbacks.append(
                RewardHackingWatch(
                    reward_spec(judge),
                    proxy="reward-model",
                    limits=limits,
                    keep_best=True,
                    action="stop" if cfg.stop_when_hacked else "warn",
                )
            )
        agent = PPO(
            policy,
            envs=envs,
            eval_envs=eval_envs,
            config=cfg.rl,
            policy_kwargs=self.policy_kwargs(cfg.rl_policy),
            **self.common(folder, *callbacks),
        )
        result = agent.resume(missing="start")
        best = folder / BEST
        source = LanguagePolicy.load(best) if best.is_dir() else agent.policy
        source.save(folder / "model")
        return dict(result.evaluation.metrics) if result.evaluation is not None else {}

    # -- shared by the stages ------------------------------------------------------------------------------

    def stage(self, stage: Stage, make: Callable[[Path], dict[str, float]]) -> str:
        """Run a stage unless its folder holds what the same settings made; returns its model's folder."""
        folder = self.run_dir / stage.name
        known = self.folders.finished(stage)
        if known is not None:
            self.figures[stage.name] = {**known, "reused": True}
            return str(folder / "model")
        with fresh_start(folder):
            self.folders.begin(stage)
            started = time.perf_counter()
            metrics = make(folder)
            figures = {"seconds": time.perf_counter() - started, "reused": False, "metrics": metrics}
            self.folders.end(stage, figures)
        self.figures[stage.name] = figures
        return str(folder / "model")

    def common(self, folder: Path, *callbacks: Callback) -> dict[str, Any]:
        """Arguments of every stage's agent."""
        return {"run_dir": folder, "loggers": self.loggers, "callbacks": [*callbacks, RunReport()]}

    def policy_kwargs(self, options: PolicyOptions) -> dict[str, Any]:
        """Arguments of a stage's policy; a device of its own comes before the pipeline's."""
        return device_kwargs(self.config.device) | options.kwargs()


def reward_spec(model: str) -> list[Any]:
    """How an environment uses a reward model's folder."""
    return ["reward-model", {"model": model}]
