"""The process of ``benchmarks.fingerprints`` that makes the runs and hashes what came of them.

Only public names of ``textenv`` are used, so that the same file runs with earlier and later code.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import hashlib
import json
import random
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

import textenv
from benchmarks.fingerprint_runs import DOUBLE, PROMPTS, RESUMED, RUNS, TOKENIZER, gpt2, pairs, rows
from benchmarks.fingerprints import Hashes, rows_hashes, tensor_digest, tensors_digest
from textenv.agents import LanguagePolicy, read_metrics


def in_double(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same run with weights of 64 bits; a reward model takes its dtype from a module."""
    if arguments["agent"] == "reward-model":
        config = gpt2()
        config.num_labels = 1
        return {**arguments, "model": GPT2ForSequenceClassification(config).double()}
    policy = {**arguments.get("policy_kwargs", {}), "dtype": torch.float64}
    return {**arguments, "policy_kwargs": policy}


def hashes(result: Any) -> Hashes:
    """What a finished run is known by."""
    tensors = result.agent.policy.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        result.agent.save(folder + "/agent")
        saved = saved_tensors(Path(folder) / "agent")
    metrics = list(result.history)
    if result.evaluation is not None:
        metrics.append({f"last/{name}": value for name, value in result.evaluation.metrics.items()})
    return {
        "weights": tensors_digest(tensors),
        "values": tensors_digest(tensors, names=False),
        "saved": tensors_digest(saved, names=False),
        **rows_hashes(metrics),
    }


def saved_tensors(folder: Path) -> dict[str, Any]:
    """The tensors of all safetensors files below a folder, except for the state of the random generators."""
    return {
        f"{path.relative_to(folder)} {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        if path.name != "random.safetensors"
        for name, tensor in load_file(path).items()
    }


def train(arguments: Mapping[str, Any], **changes: Any) -> Any:
    """One call of ``textenv.train``, quietly."""
    given = {**arguments, "model": copy.deepcopy(arguments.get("model")), **changes}  # a config is written to
    return textenv.train(**given, loggers=())


def resumed(arguments: Mapping[str, Any]) -> Hashes:
    """The run ended by an error in its third iteration or step, and resumed by another agent."""

    def interrupt(agent: Any, metrics: Any) -> None:
        if agent.iteration == 3:
            raise InterruptedError

    with tempfile.TemporaryDirectory() as folder:
        run = {"run_dir": folder + "/run", "report": False, "checkpoint_every": 1}
        with contextlib.suppress(InterruptedError):
            train(arguments, **run, callbacks=[interrupt])
        from_seed(1)
        result = train(arguments, **run, resume=True)
        if not result.agent.resumed:
            raise RuntimeError("the second part must go on from a checkpoint")
        return hashes(result)


def pipeline() -> Hashes:
    """Fine-tuning, reward model and PPO on files, from a model in a folder."""
    from textenv.agents.pipeline import PipelineConfig, run_pipeline

    short = {"learning_rate": 1e-2, "report": False}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        GPT2LMHeadModel(gpt2()).save_pretrained(folder / "model")
        TOKENIZER.save_pretrained(folder / "model")
        data = {"prompts": [{"prompt": prompt} for prompt in PROMPTS], "sft": rows(), "pairs": pairs()}
        for part, records in data.items():
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / f"{part}.jsonl").write_text(lines)
        config = PipelineConfig.from_dict(
            {
                "model": str(folder / "model"),
                "device": "cpu",
                "data": {part: str(folder / f"{part}.jsonl") for part in data} | {"validation_share": 0.3},
                "sft": {"steps": 3, "batch_size": 4, **short},
                "reward": {"steps": 3, "batch_size": 4, **short},
                "rl": {"iterations": 2, "episodes_per_iteration": 8, "minibatches": 2, "eval_episodes": 8}
                | short,
                "num_envs": 4,
                "max_new_tokens": 6,
                "final_episodes": 8,
            }
        )
        run_pipeline(config, folder / "run", loggers=())
        tensors = {
            f"{stage} {tensor}": value
            for stage in ("sft", "reward-model", "rl")
            for tensor, value in saved_tensors(folder / "run" / stage / "model").items()
        }
        metrics = [
            row for stage in ("sft", "reward-model", "rl") for row in read_metrics(folder / "run" / stage)
        ]
        found = json.loads((folder / "run" / "results.json").read_text())
        metrics.append(flat({key: value for key, value in found.items() if key != "stages"}))
    return {"weights": tensors_digest(tensors), "values": tensors_digest(tensors, names=False)} | rows_hashes(
        metrics
    )


def study() -> Hashes:
    """Two agents with two seeds on a task, and the table of results."""
    from textenv.agents.study import StudyConfig, run_study, write_outputs

    shared = {"learning_rate": 1e-3}
    config = StudyConfig(
        agents={
            "ppo": {"settings": {**shared, "iterations": 2, "episodes_per_iteration": 16}},
            "clone": {"agent": "filtered-bc", "settings": {**shared, "steps": 4, "batch_size": 16}},
        },
        tasks={"probe-end": {"start": {"steps": 2, "learning_rate": 1e-3}, "num_envs": 16}},
        seeds=2,
        evaluations=1,
        eval_episodes=16,
        best_of=(2,),
        best_of_prompts=4,
        keep_models=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_study(config, folder)
        write_outputs(config, folder)
        tensors = saved_tensors(folder)
        results = json.loads((folder / "results.json").read_text())
        metrics = [flat(results)]
        for path in sorted(folder.rglob("metrics.jsonl")):
            metrics += read_metrics(path.parent)
    return {"weights": tensors_digest(tensors), "values": tensors_digest(tensors, names=False)} | rows_hashes(
        metrics
    )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The numbers and texts in nested JSON by their place."""
    if isinstance(value, Mapping):
        return {key: each for part in value for key, each in flat(value[part], f"{name}/{part}").items()}
    if isinstance(value, list):
        return {key: each for i, part in enumerate(value) for key, each in flat(part, f"{name}/{i}").items()}
    return {name: value}


def played() -> Hashes:
    """Two tasks, played by ``gym.make_vec`` and a policy with a key-value cache: observations and rewards."""
    found: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for task in ("random-walks", "probe-end"):
        envs = gym.make_vec("TextRLHF-v0", num_envs=4, task=task)
        policy = LanguagePolicy(textenv.make_task(task).build("train").model_config(), seed=0)
        policy.attach(envs.unwrapped)
        obs, info = envs.reset(seed=0)
        for step in range(12):
            actions, _ = policy.act(obs, key=info["key"])
            obs, rewards, terminated, truncated, info = envs.step(actions)
            seen = {**obs, "actions": actions, "rewards": rewards, "ends": terminated, "cuts": truncated}
            found |= {f"{task} {step} {name}": tensor_digest(torch.as_tensor(x)) for name, x in seen.items()}
            rows.append({"task": task, "return": float(rewards.sum())})
        envs.close()
    whole = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return {"weights": whole, **rows_hashes(rows)}


def from_seed(seed: int = 0) -> None:
    """Start the global random generators anew, so that no run depends on those before it."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def all_runs() -> dict[str, Callable[[], Hashes]]:
    """Name -> what makes the run and returns its hashes."""
    made: dict[str, Callable[[], Hashes]] = {}
    for name, arguments in RUNS.items():
        made[name] = functools.partial(lambda given: hashes(train(given)), arguments)
    for name in DOUBLE:
        made[f"{name} float64"] = functools.partial(lambda given: hashes(train(in_double(given))), RUNS[name])
    for name in RESUMED:
        made[f"{name} resumed"] = functools.partial(resumed, RUNS[name])
    return {**made, "played": played, "pipeline": pipeline, "study": study}


def main() -> None:
    """Make the runs and write their hashes; a run that fails is written down with its error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: dict[str, Hashes] = {}
    begin = time.perf_counter()
    for name, make in all_runs().items():
        if args.only not in name:
            continue
        started = time.perf_counter()
        from_seed()
        try:
            found[name] = make()
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{time.perf_counter() - started:6.2f} s  {name}", flush=True)
    for name in RESUMED:
        whole, parts = found.get(name, {}), found.get(f"{name} resumed", {})
        if whole and parts and whole != parts and "error" not in parts:
            parts["error"] = "the resumed run must end as the uninterrupted one does, and differs"
    answer = {"textenv": textenv.__file__, "seconds": time.perf_counter() - begin, "runs": found}
    args.out.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
