"""One run of a study: training of an agent, or the baselines of a task and seed."""

from __future__ import annotations

import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from textenv.agents.base.registry import get_agent
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.distributed.devices import device_kwargs
from textenv.agents.evaluation.evaluator import EVAL_SEED, evaluate
from textenv.agents.loggers.jsonl import JSONLLogger, read_metrics
from textenv.agents.losses.best_of_n import best_of_k, best_of_n_kl
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.study.cells import agent_setup, task_setup
from textenv.agents.study.config import StudyConfig, TaskSetup
from textenv.agents.study.observer import JUDGE, KL, SECONDS, Observer, judged
from textenv.agents.study.plan import IDENTITY, RESULT, RunSpec, identity
from textenv.agents.study.specs import ready, ready_list
from textenv.agents.study.start import start_model, task_data
from textenv.agents.train_setup.task_start import own_model
from textenv.agents.training import train
from textenv.rewards.registry import make_reward
from textenv.rollout import collect
from textenv.tasks.make import make_vec_env
from textenv.tasks.stop_tokens import generation_ends
from textenv.utils.json_files import write_json
from textenv.utils.redaction import masked_text

FIGURES = {
    "reward": "eval/return/mean",
    "judge": f"eval/{JUDGE}",
    "kl": f"eval/{KL}",
    "length": "eval/episode/length",
    "repetition": "eval/text/repetition",
    "distinct_2": "eval/text/distinct_2",
    "eos_rate": "eval/episode/eos_rate",
    "entropy": "eval/objective/entropy",
    "seconds": f"eval/{SECONDS}",
    "env_tokens": "env_tokens",
    "gradient_tokens": "gradient_tokens",
    "reward_calls": "reward_calls",
    "episodes": "episodes",
    "optimizer_steps": "optimizer_steps",
}
"""Figure of a run -> its name in ``metrics.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study and its folder, as its runs need them."""

    config: StudyConfig
    """The settings."""
    folder: Path
    """The study's folder."""
    trust_remote_code: bool = False
    """Run code that comes with a model."""


def perform(study: Study, spec: RunSpec) -> dict[str, Any]:
    """Start or continue a run and write its result; an exception is written as the result.

    Returns:
        The result: the run's ``RunSpec``, ``status`` ("done" or "failed"), ``figures`` or ``error``.
    """
    folder = spec.folder(study.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / IDENTITY, identity(study.config, spec))
    threads = torch.get_num_threads()
    result: dict[str, Any] = spec.to_dict()
    try:
        if study.config.threads is not None:
            torch.set_num_threads(study.config.threads)
        found = _measure_start(study, spec) if spec.is_anchor else _train(study, spec)
        result |= {"status": "done", **found, "figures": figures(folder)[-1]}
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        result |= {
            "status": "failed",
            "error": masked_text(f"{type(error).__name__}: {error}"),
            "traceback": masked_text(lines),
        }
    finally:
        torch.set_num_threads(threads)
    if result["status"] == "done" and not study.config.keep_models:
        for name in ("checkpoints", "best"):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / RESULT, result)
    return result


def figures(folder: Path) -> list[dict[str, float]]:
    """The figures of every evaluation of a run, from its ``metrics.jsonl``, the last at its end.

    Raises:
        ValueError: if it was never evaluated.
    """
    rows = [row for row in read_metrics(folder) if FIGURES["reward"] in row]
    if not rows:
        raise ValueError(f"{folder} holds no evaluation: the agent writes no texts that could be compared")
    return [
        {name: row[key] for name, key in FIGURES.items() if key in row} | {"step": row["step"]}
        for row in rows
    ]


def _train(study: Study, spec: RunSpec) -> dict[str, Any]:
    """Train the agent in its folder."""
    task = task_setup(study.config, spec.task)
    agent = agent_setup(study.config, spec.label, spec.task)
    start = _start(study, spec)
    name = agent.agent or ""
    cls = get_agent(name)
    model: Any = agent.model or start
    if not agent.start:
        model = own_model(task.task, task_data(task))
    source = study.config.source(spec.task)
    config = study.config.agents[spec.label].config(spec.seed, spec.kl_coef, source)
    if source is None:  # all is said: nothing is left to the task
        config = type(config).from_dict(config.to_dict())
    observer = Observer(
        study.config.evaluations,
        study.config.budget,
        ready(task.judge),
        LanguagePolicy(start, **_policy_kwargs(study, task, frozen=True)),
    )
    train(
        name,
        model,
        task=task.task,
        reward=ready_list(task.reward),
        dataset=agent.dataset or (None if cls.online else task.dataset),
        tokenizer=task.tokenizer,
        config=config.replace(eval_episodes=study.config.eval_episodes, report=False),
        num_envs=task.num_envs,
        env_kwargs=task.env.kwargs(),
        policy_kwargs=_policy_kwargs(study, task),
        run_dir=spec.folder(study.folder),
        resume="auto",
        loggers=(),
        callbacks=[observer],
    )
    return {}


def _measure_start(study: Study, spec: RunSpec) -> dict[str, Any]:
    """Evaluate the initial policy, and best-of-n sampling from it."""
    config, task = study.config, task_setup(study.config, spec.task)
    policy = LanguagePolicy(_start(study, spec), **_policy_kwargs(study, task, frozen=True))
    policy.eval()
    judge = None if task.judge is None else make_reward(ready(task.judge))

    def envs(samples_per_prompt: int) -> Any:
        made = make_vec_env(
            task.num_envs,
            task=task.task,
            split="validation",
            rewards=ready_list(task.reward),
            tokenizer=task.tokenizer,
            model_stop_token_ids=generation_ends(policy),
            device=policy.device,
            **{**task.env.kwargs(), "samples_per_prompt": samples_per_prompt, "shuffle": False},
        )
        if judge is not None:
            judge.bind(made.unwrapped)
        return made

    found = evaluate(policy, envs(1), config.eval_episodes)
    if judge is not None:
        found.metrics[JUDGE] = float(judged(judge, found.episodes).mean())
    found.metrics |= {KL: 0.0, SECONDS: 0.0}
    folder = spec.folder(study.folder)
    RunFolder(folder).metrics_path.unlink(missing_ok=True)  # of an earlier attempt
    logger = JSONLLogger(folder)
    logger.log({f"eval/{name}": value for name, value in found.metrics.items()}, 0)
    logger.close()
    most = max(config.best_of, default=0)
    if not most:
        return {"best_of": {}}
    played = collect(envs(most), policy, most * config.best_of_prompts, seed=EVAL_SEED, update_terms=False)
    worth = {"reward": played.returns, "length": played.response_lengths}
    if judge is not None:
        worth["judge"] = judged(judge, played)
    scores = played.returns.view(-1, most)
    means = {name: best_of_k(scores, values.view(-1, most)).mean(0) for name, values in worth.items()}
    return {
        "best_of": {
            str(n): {"kl": best_of_n_kl(n), **{name: float(mean[n - 1]) for name, mean in means.items()}}
            for n in sorted(config.best_of)
        }
    }


def _start(study: Study, spec: RunSpec) -> str:
    setup = task_setup(study.config, spec.task)
    return start_model(study.folder, spec.task, setup, spec.seed, trust_remote_code=study.trust_remote_code)


def _policy_kwargs(study: Study, task: TaskSetup, *, frozen: bool = False) -> dict[str, Any]:
    """Arguments of policies; options of training are left out for a frozen one."""
    kwargs = device_kwargs(task.policy.device) | task.policy.kwargs()
    if study.trust_remote_code:
        kwargs["trust_remote_code"] = True
    if frozen:
        for name in ("lora", "train_layers", "gradient_checkpointing"):
            kwargs.pop(name, None)
    return kwargs
