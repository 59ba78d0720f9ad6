"""Trains tiny agents in processes that are killed at chosen points; run by test_resume.

The worker imports everything once and forks a process for each run that it is asked for, one JSON line each.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LETTERS = "abcdefgh"
KINDS: dict[str, dict[str, Any]] = {
    # All that has a state: adaptive KL, normalised reward, score scaling, average of weights, schedule.
    "ppo": {
        "agent": "ppo",
        "kl_controller": "adaptive",
        "score_scale": True,
        "ema_decay": 0.5,
        "lr_schedule": "linear",
        "eval_every": 2,
    },
    "ppo-lora": {"agent": "ppo", "policy_kwargs": {"lora": {"r": 2}}},
    "ppo-frozen": {"agent": "ppo", "policy_kwargs": {"train_layers": 1}, "kl_placement": "loss"},
    "ilql": {"agent": "ilql", "target_every": 3, "target_alpha": 0.5, "lr_schedule": "cosine"},
    "dpo": {"agent": "dpo", "lr_schedule": "linear"},
    "reward-model": {"agent": "reward-model", "heads": 2, "dropout": 0.1},
    "sft": {"agent": "sft", "warmup_steps": 2, "weight_decay": 0.1, "eval_every": 3},
}
KINDS["ppo-best"] = KINDS["ppo"]
STEPS = 4
TRAINING = (
    "training",
    "train_setup.environments",
    "train_setup.evaluation",
    "train_setup.task_start",
    "reports.recorder",
)
LATE = [f"textenv.agents.{name}" for name in TRAINING]
LATE += ["textenv.data.held_out", "textenv.envs.text_env", "textenv.tasks.make", "peft", "deepspeed"]
"""What a run imports late, the worker imports once for all; accelerate imports deepspeed where it is."""


def arguments(kind: str) -> dict[str, Any]:
    """What ``train`` takes for a run of this kind."""
    from transformers import GPT2Config

    from textenv.tasks.letters import letter_tokenizer

    given = dict(KINDS[kind])
    tokenizer = letter_tokenizer(LETTERS)
    shared = {
        "model": GPT2Config(
            n_layer=2, n_embd=16, n_head=2, n_positions=32, vocab_size=len(tokenizer), bos_token_id=None
        ),
        "tokenizer": tokenizer,
        "env_kwargs": {"max_new_tokens": 5},
        "num_envs": 4,
        "learning_rate": 1e-2,
        "checkpoint_every": 1,
        "eval_episodes": 4,
        "loggers": (),
        "eval_prompts": ["ab", "ba"],
        "reward": [["normalized", {"of": "count-a"}]],
    }
    if given["agent"] in ("reward-model", "dpo"):
        for name in ("eval_prompts", "reward", "env_kwargs"):  # not for models that generate nothing
            del shared[name]
        pairs = [{"prompt": "ab", "chosen": text, "rejected": text + "h"} for text in ("ab", "c", "dea")]
        shared |= {"dataset": pairs * 2, "steps": STEPS, "batch_size": 4}
        if given["agent"] == "reward-model":
            del shared["eval_episodes"]
    elif given["agent"] == "ppo":
        shared |= {"prompts": ["a", "bc", "def"], "iterations": STEPS, "episodes_per_iteration": 6}
        shared |= {"epochs": 2, "minibatches": 2}
    else:
        rows = [{"prompt": "ab", "completion": text, "reward": len(text)} for text in ("ab", "c", "dea")]
        shared |= {"dataset": rows * 2, "steps": STEPS, "batch_size": 4}
    if kind == "ppo-best":
        shared["callbacks"] = [latest_as_best()]
    return {**shared, **given}


def count_a(completions: list[str], **columns: Any) -> list[float]:
    """A reward that also draws from the global generators, whose states a resumed run goes on from."""
    import random

    import numpy as np
    import torch

    noise = random.random() + np.random.rand() + torch.rand(1).item()
    return [text.count("a") + 0.01 * noise for text in completions]


def latest_as_best() -> Any:
    """A callback that takes every evaluation for the best so far, so ``best`` is certain to be replaced."""
    from textenv.agents.base.callbacks import BestCheckpoint

    class Latest(BestCheckpoint):
        """Goes by the iteration."""

        def on_evaluation(self, agent: Any, evaluation: Any) -> None:
            evaluation.metrics["iteration"] = float(agent.iteration)
            super().on_evaluation(agent, evaluation)

    return Latest("iteration")


def train_once(kind: str, run_dir: str, resume: Any, kill: str | None) -> None:
    """One run, killed at ``kill``, "POINT:COUNT": the COUNT-th time that the process comes to that point."""
    import random

    import textenv
    from textenv.agents.reports import recorder

    recorder.enabled = False  # plots take seconds
    random.seed(0)  # Python seeds it anew in a forked process
    if kill is not None:
        point, count = kill.split(":")
        POINTS[point](_Fuse(int(count)))
    given = arguments(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        textenv.train(**given, run_dir=run_dir, resume=resume)


class _Fuse:
    """Kills this process, as the kernel would, when it is lit for the n-th time."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, before: Callable[[], None] = lambda: None) -> None:
        self.left -= 1
        if self.left == 0:
            before()
            os.kill(os.getpid(), signal.SIGKILL)


def _before(place: Any, name: str, fuse: _Fuse, damage: Callable[..., None] = lambda *args: None) -> None:
    """Light the fuse whenever ``place.name`` is called; ``damage`` is done before the end."""
    function = getattr(place, name)

    @functools.wraps(function)
    def lit(*args: Any, **kwargs: Any) -> Any:
        fuse(lambda: damage(*args))
        return function(*args, **kwargs)

    setattr(place, name, lit)


def _in_rollout(fuse: _Fuse) -> None:
    from textenv.agents.policies.language_policy import LanguagePolicy

    _before(LanguagePolicy, "act", fuse)


def _in_update(fuse: _Fuse) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: fuse())


def _in_log(fuse: _Fuse) -> None:
    from textenv.agents.loggers.jsonl import JSONLLogger

    def half_a_line(file: Any, row: dict[str, Any]) -> None:
        file.write(json.dumps(row)[:20])
        file.flush()

    function = JSONLLogger._write

    def lit(file: Any, row: dict[str, Any]) -> None:
        fuse(lambda: half_a_line(file, row))
        function(file, row)

    JSONLLogger._write = staticmethod(lit)  # type: ignore[method-assign]


def _in_checkpoint(fuse: _Fuse) -> None:
    import textenv.agents.checkpointing.checkpoint as module

    def half_a_file(tensors: Any, path: Path) -> None:
        path.write_bytes(b"\0" * 100)

    _before(module, "save_file", fuse, half_a_file)


def _rename(fuse: _Fuse, *, after: bool) -> None:
    rename = os.rename

    def lit(source: Any, target: Any) -> None:
        checkpoint = Path(target).name.startswith("step-")
        if checkpoint and not after:
            fuse()
        rename(source, target)
        if checkpoint and after:
            fuse()

    os.rename = lit


def _in_prune(fuse: _Fuse) -> None:
    import textenv.agents.checkpointing.run_folder as module

    def one_file(path: Path) -> None:
        (path / "config.json").unlink()

    class Half:
        rmtree = staticmethod(shutil.rmtree)

    _before(Half, "rmtree", fuse, one_file)
    Half.rmtree = staticmethod(Half.rmtree)
    module.shutil = Half  # type: ignore[assignment]


def _in_best(fuse: _Fuse) -> None:
    """Between the two renames that replace the best agent."""
    rename = os.rename

    def lit(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(source).name == "best":
            fuse()

    os.rename = lit


POINTS: dict[str, Callable[[_Fuse], None]] = {
    "rollout": _in_rollout,
    "update": _in_update,
    "log": _in_log,
    "write": _in_checkpoint,
    "before-rename": functools.partial(_rename, after=False),
    "after-rename": functools.partial(_rename, after=True),
    "prune": _in_prune,
    "best": _in_best,
}


def main() -> None:
    """Serve: a request a line on stdin, the exit status of its process on stdout (-9: killed)."""
    import torch
    import transformers

    from textenv import register_reward
    from textenv.agents.base.registry import get_agent

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    register_reward("count-a")(count_a)
    for given in KINDS.values():
        get_agent(given["agent"])
    for name in LATE:
        if find_spec(name):
            import_module(name)
    with tempfile.TemporaryDirectory() as folder:  # what transformers makes once in a process
        transformers.GPT2LMHeadModel(arguments("ppo")["model"]).save_pretrained(folder)

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(2, 1)
                train_once(request["kind"], request["run_dir"], request["resume"], request["kill"])
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if request.get("after") is not None:
            import time

            time.sleep(request["after"])
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
