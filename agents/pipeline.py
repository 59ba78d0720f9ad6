"""The pipeline of RLHF in one call: supervised fine-tuning, reward model (and judge), reinforcement learning.

run_dir/
    pipeline.json           settings
    sft/ reward-model/ judge/ rl/
        stage.json          what the stage was made from; when it is finished also its figures
        model/              what the stage made
        metrics.jsonl, checkpoints/, ...
    results.json            before and after, with people's own texts beside them
    tables/samples.jsonl    the same prompts before and after
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.agents.before_after import BeforeAfter, compare
from textenv.agents.config import Config
from textenv.agents.hacking_watch import BEST, RewardHackingWatch
from textenv.agents.parallel import distributed
from textenv.agents.pipeline_config import STAGES, DataConfig, PipelineConfig
from textenv.agents.pipeline_stages import STAGE_FILE, StageError, differences, identity, write
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.options import PolicyOptions
from textenv.agents.ppo import PPO
from textenv.agents.reports.record import report_at_end
from textenv.agents.reward_models.agent import RewardModelAgent
from textenv.agents.scorer import Scorer
from textenv.agents.sft import SFT
from textenv.atomic import atomic_file
from textenv.episodes import EpisodeBatch
from textenv.pretrained import trusting

if TYPE_CHECKING:
    from textenv.tasks.task import TaskData

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
"""Share of repeated trigrams that is never held against a policy: short texts of people have next to none."""


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
        overwrite: make stages anew whose folder was made from other settings, and drop what was in it.
        trust_remote_code: whether code that comes with models may run, in every stage.

    Raises:
        StageError: if a stage's folder was made from other settings (it names them), or a stage that is not
            run has left nothing to go on with; if a launcher started several processes.
    """
    distributed.start()
    if not distributed.alone():
        raise StageError(
            f"a pipeline needs one process, got {distributed.world_size()}; its stages can be trained in "
            "several, one by one: textenv sft, textenv reward-model, textenv train"
        )
    with trusting(trust_remote_code):
        return Pipeline(config, Path(run_dir), loggers=loggers, overwrite=overwrite).run()


class Pipeline:
    """The stages of a run; see ``run_pipeline``."""

    def __init__(
        self, config: PipelineConfig, run_dir: Path, *, loggers: Sequence[Any] = (), overwrite: bool = False
    ) -> None:
        from textenv.tasks.registry import make_task

        self.config, self.run_dir, self.loggers, self.overwrite = config, run_dir, loggers, overwrite
        self.task = make_task(config.task)
        self.task_kwargs = dict(config.task_kwargs)
        source = config.policy or config.model
        if source is not None and self.task.takes("tokenizer"):
            self.task_kwargs.setdefault("tokenizer", source)
        self.data: TaskData = self.task.build("train", **self.task_kwargs)
        self.figures: dict[str, dict[str, Any]] = {}
        self.hashes: dict[str, str] = {}

    def run(self) -> PipelineResult:
        """All stages up to the last one asked for; after the last of all, before and after."""
        cfg = self.config
        with atomic_file(self.run_dir / "pipeline.json") as path:
            path.write_text(json.dumps(cfg.to_dict(), indent=2) + "\n")
        result = PipelineResult(run_dir=self.run_dir, stages=self.figures, comparison=None)
        last = max(STAGES.index(stage) for stage in cfg.stages)
        policy = cfg.policy or self.stage(
            "sft", self.fine_tune, cfg.sft, [cfg.model, cfg.data.sft, cfg.sft_policy.to_dict()]
        )
        if last == 0:
            return result
        feedback = self.data.feedback
        # A scorer that begins as the policy's trunk is another one after another fine-tuning.
        trunk = ("sft",) if feedback is None or feedback.make_scorer is None else ()
        reward = cfg.reward_model or self.stage(
            "reward-model",
            lambda folder: self.score_model("reward-model", folder, policy),
            cfg.reward,
            [cfg.data.pairs, cfg.data.ratings, cfg.data.held_out],
            after=trunk,
        )
        if last == 1:
            return result
        judge = cfg.judge_model
        if judge is None and (cfg.data.judge is not None or feedback is not None):
            judge = self.stage(
                "judge",
                lambda folder: self.score_model("judge", folder, policy),
                cfg.judge,
                [cfg.data.judge, cfg.data.held_out],
                after=trunk,
            )
        if last == 2:
            return result
        watch = {name: getattr(cfg, name) for name in ("kl_limit", "repetition_limit", "stop_when_hacked")}
        env = {name: cfg.to_dict()[name] for name in ("rewards", "num_envs", "max_new_tokens")}
        final = self.stage(
            "rl",
            lambda folder: self.reinforce(folder, policy, reward, judge),
            cfg.rl,
            [watch, env, cfg.rl_policy.to_dict(), cfg.policy, cfg.reward_model, cfg.judge_model],
            after=STAGES[:3],
        )
        result.comparison = compare(
            before=policy,
            after=final,
            envs=self.envs(reward, split="validation"),
            judge=None if judge is None else reward_spec(judge),
            episodes=cfg.final_episodes,
            seed=cfg.final_seed,
            people=self.people(),
        )
        result.comparison.save(self.run_dir, stages=self.figures)
        if cfg.rl.report:
            report_at_end(self.run_dir)
        return result

    # -- the stages ------------------------------------------------------------------------------------------

    def fine_tune(self, folder: Path) -> dict[str, float]:
        """Supervised fine-tuning, or next-token pretraining of a model that begins with random weights."""
        cfg, data = self.config, self.data
        dataset: Any = cfg.data.sft
        if dataset is None and data.texts and (cfg.model is None or data.make_demonstrations is None):
            texts = list(data.texts)
            dataset = EpisodeBatch.from_texts(
                [""] * len(texts), texts, data.tokenizer, max_length=cfg.max_text_tokens
            )
        elif dataset is None:
            dataset = data.demonstrations
        if dataset is None:
            raise StageError(f"the task {cfg.task!r} has neither texts nor demonstrations; set data.sft")
        model = cfg.model or (None if data.model_config is None else data.model_config())
        if model is None:
            raise StageError(f"the task {cfg.task!r} has no model of its own; set model")
        agent = SFT(
            model,
            dataset=dataset,
            config=cfg.sft,
            tokenizer=data.tokenizer,
            policy_kwargs=self.policy_kwargs(cfg.sft_policy),
            **self.common(folder),
        )
        result = agent.resume(missing="start")
        agent.policy.save(folder / "model")
        return {"nll": result.history[-1]["sft/nll"]} if result.history else {}

    def score_model(self, name: str, folder: Path, policy: str) -> dict[str, float]:
        """The reward model or the judge: on the task's own small scorer, or on the policy's trunk."""
        cfg, feedback = self.config, self.data.feedback
        settings = cfg.reward if name == "reward-model" else cfg.judge
        train: dict[str, Any] = {}
        if name == "judge":
            train = {"pairs": cfg.data.judge} if cfg.data.judge is not None else {}
            given = None if feedback is None else (feedback.judge, feedback.judge_held_out)
        else:
            own = {"pairs": cfg.data.pairs, "ratings": cfg.data.ratings}
            train = {kind: path for kind, path in own.items() if path is not None}
            given = None if feedback is None else (feedback.train, feedback.held_out)
        held_out: Any = cfg.data.held_out
        if not train:
            if given is None:
                raise StageError(
                    f"the task {cfg.task!r} has no human feedback; set data.pairs or data.ratings"
                )
            train, held_out = dict(given[0]), given[1] if held_out is None else held_out
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
            policy_kwargs={} if cfg.device is None else {"device": cfg.device},
            **self.common(folder),
        )
        agent.resume(missing="start")
        agent.policy.save(folder / "model")
        if agent.eval_dataset is None:
            return {}
        found = agent.evaluate()
        with atomic_file(folder / "evaluation.json") as path:
            path.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
        return found.metrics

    def reinforce(self, folder: Path, policy: str, reward: str, judge: str | None) -> dict[str, float]:
        """PPO against the reward model, watched by the judge; the best policy by the judge is what counts."""
        cfg = self.config
        envs = self.envs(reward, split="train")
        eval_envs = self.envs(reward, split="validation")
        callbacks = []
        if judge is not None:
            people = self.people()
            repetition = cfg.repetition_limit
            if repetition is None and people is not None:
                repetition = 2 * max(LEAST_REPETITION, BeforeAfter.repetition(people))
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
            callbacks=callbacks,
            policy_kwargs=self.policy_kwargs(cfg.rl_policy),
            **self.common(folder),
        )
        result = agent.resume(missing="start")
        best = folder / BEST
        source = LanguagePolicy.load(best) if best.is_dir() else agent.policy
        source.save(folder / "model")
        return dict(result.evaluation.metrics) if result.evaluation is not None else {}

    # -- what they share -------------------------------------------------------------------------------------

    def stage(
        self,
        name: str,
        make: Callable[[Path], dict[str, float]],
        settings: Config,
        inputs: Sequence[Any],
        *,
        after: Sequence[str] = (),
    ) -> str:
        """Run a stage unless its folder holds what the same settings made; returns its model's folder."""
        folder = self.run_dir / name
        needs = {stage: self.hashes[stage] for stage in after if stage in self.hashes}
        written = {
            "settings": settings.to_dict(),
            "task": [self.config.task, self.config.task_kwargs],
            "inputs": [identity(item) for item in inputs],
            "after": needs,
        }
        key = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]
        self.hashes[name] = key
        file = folder / STAGE_FILE
        known = json.loads(file.read_text()) if file.is_file() else None
        if known is not None and known["hash"] != key and name in self.config.stages:
            if not self.overwrite:
                differ = ", ".join(differences(known["made_from"], written))
                raise StageError(
                    f"{folder} was made from other settings ({differ}); "
                    "choose another run_dir, or overwrite=True"
                )
            shutil.rmtree(folder)
            known = None
        if known is not None and known["finished"]:
            self.figures[name] = {**known["figures"], "reused": True}
            return str(folder / "model")
        if name not in self.config.stages:
            raise StageError(
                f"the stage {name!r} is not among the stages to run, and {folder} is not finished"
            )
        if known is None and folder.is_dir() and any(folder.iterdir()):
            raise StageError(f"{folder} holds other files; choose another run_dir")
        note = {"hash": key, "made_from": written, "finished": False}
        write(file, note)
        started = time.perf_counter()
        metrics = make(folder)
        figures = {"seconds": time.perf_counter() - started, "reused": False, "metrics": metrics}
        write(file, {**note, "finished": True, "figures": figures})
        self.figures[name] = figures
        return str(folder / "model")

    def common(self, folder: Path) -> dict[str, Any]:
        """Arguments of every stage's agent."""
        return {"run_dir": folder, "loggers": self.loggers}

    def policy_kwargs(self, options: PolicyOptions) -> dict[str, Any]:
        """Arguments of a stage's policy; a device of its own comes before the pipeline's."""
        shared: dict[str, Any] = {} if self.config.device is None else {"device": self.config.device}
        return shared | options.kwargs()

    def envs(self, reward: str, *, split: str) -> Any:
        """Environments of the task that pay the reward model's score."""
        from textenv.tasks.make import make_vec_env

        return make_vec_env(
            self.config.num_envs,
            task=self.config.task,
            task_kwargs=self.task_kwargs,
            split=split,
            rewards=[reward_spec(reward), *self.config.rewards],
            max_new_tokens=self.config.max_new_tokens,
            shuffle=split == "train",
            device=self.config.device or "cpu",
        )

    def people(self) -> EpisodeBatch | None:
        """How people went on with the validation prompts, if the task has demonstrations."""
        return self.task.build("validation", **self.task_kwargs).demonstrations


def reward_spec(model: str) -> list[Any]:
    """How an environment uses a reward model's folder; a foreign classifier is used as it is."""
    from textenv.agents.scorer import SETTINGS

    if (Path(model) / SETTINGS).is_file():
        return Scorer.load(model).reward_spec(model)
    return ["reward-model", {"model": model}]
