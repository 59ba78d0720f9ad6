"""Trains tiny agents in one of several processes; run by the tests of training in several processes.

``python -m tests.agents.distributed.distributed_worker FOLDER SCENARIO ...``, with the variables that a
launcher sets; each process writes what the scenarios gave into ``FOLDER/PROCESS.json``. What a launcher
starts imports nothing: the server of ``tests.helpers.forked_python`` runs it, in a process with the variables
that the launcher set.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.forked_python import ADDRESS, Server, exec_here

ROOT = Path(__file__).parents[3]
MODULE = "tests.agents.distributed.distributed_worker"
LETTERS = "abcdefgh"
PAIRS = [{"prompt": "ab", "chosen": "a" * n, "rejected": "cd"[: 1 + n % 2]} for n in range(1, 12)]
TEXTS = [{"prompt": "ab", "completion": "abcdefgh"[:n], "reward": float(n % 3)} for n in range(1, 8)]
UNLIKE: dict[str, Any] = {
    "dataset": [{"prompt": "ab", "completion": ("abcdefgh" * 10)[:n]} for n in (80, 10, 9, 8)],
    "batch_size": 4,
    "max_tokens_per_microbatch": 1000,
}
"""Rows that, shared out, are two groups of like length in one process and a single one in the other."""
SETTINGS: dict[str, dict[str, Any]] = {
    # All that is computed over a whole batch: whitened advantages, adaptive KL, running scales, early stop.
    "ppo": {
        "kl_controller": "adaptive",
        "score_scale": True,
        "center_by_prompt": True,
        "whiten_advantages": True,
        "stop_at_kl": 5.0,
        "ema_decay": 0.5,
        "ptx_coef": 0.1,
        "ptx_batch_size": 3,
        "dataset": TEXTS,
    },
    "ilql": {"dataset": TEXTS, "target_every": 2},
    "dpo": {"dataset": PAIRS, "precompute_reference": True},
    "kto": {"dataset": PAIRS},
    "reward-model": {"dataset": PAIRS},
    "sft": {"dataset": TEXTS},
}


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
"""What ``accelerate launch`` says to its processes where the configuration asks for FSDP2."""


PYTHON = Server("textenv.agents.training")


def zero(stage: int) -> dict[str, str]:
    """The same for DeepSpeed; no parameter is so small that stage 3 would leave it whole for that."""
    settings = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {"zero_optimization": settings, "train_micro_batch_size_per_gpu": "auto"}
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": json.dumps(config),
        "ACCELERATE_CONFIG_DS_FIELDS": "",  # what accelerate's own file had said, instead of DeepSpeed's
    }


def launch(
    folder: Path,
    *scenarios: str,
    processes: int = 2,
    timeout: float = 120,
    variables: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Run scenarios in so many processes, and return what each process wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    port = 29_000 + os.getpid() % 2_000 + len(list(folder.parent.iterdir()))
    shared = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    shared |= {ADDRESS: PYTHON.start(), **(variables or {})}
    command = [sys.executable, "-m", MODULE, str(folder), *scenarios]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    said = []
    try:
        for process in started:
            said.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in started:
            process.kill()
    for rank, (process, text) in enumerate(zip(started, said, strict=True)):
        assert process.returncode == 0, f"process {rank}:\n{text}"
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    return [{**result, "output": text} for result, text in zip(results, said, strict=True)]


def accelerate_launch(config: str, folder: Path, *scenarios: str, timeout: float) -> list[dict[str, Any]]:
    """The same in two processes that ``accelerate launch`` starts by one of the project's configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    file = ROOT / "configs" / "accelerate" / config
    command = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += [
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "--module",
        MODULE,
        str(folder),
        *scenarios,
    ]
    env = {**os.environ, ADDRESS: PYTHON.start()}
    done = PYTHON.run(command, cwd=ROOT, env=env, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def arguments(name: str, **changes: Any) -> dict[str, Any]:
    """What ``train`` takes."""
    from transformers import GPT2Config

    from textenv.tasks.letters import letter_tokenizer

    tokenizer = letter_tokenizer(LETTERS)
    model = GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=96, vocab_size=len(tokenizer))
    model.bos_token_id, model.eos_token_id = None, tokenizer.eos_token_id
    given: dict[str, Any] = {
        "agent": name,
        "model": model,
        "tokenizer": tokenizer,
        "learning_rate": 3e-3,
        # Some gradients (of the biases of keys) are nothing but rounding, which Adam would blow up.
        "adam_eps": 1e-5,
        "max_tokens_per_microbatch": 40,
        "loggers": (),
        "report": False,
        **SETTINGS[name],
    }
    if name == "ppo":
        given |= {
            "prompts": ["a", "bc", "def", "fghab"],
            "reward": [["normalized", {"of": count_a}]],
            "env_kwargs": {"max_new_tokens": 9, "samples_per_prompt": 2},
            "num_envs": 4,
            "iterations": 2,
            "episodes_per_iteration": 12,
            "epochs": 1,
            "minibatches": 2,
        }
    else:
        given |= {"steps": 3, "batch_size": 5}
    return {**given, **changes}


def count_a(completions: list[str], **columns: Any) -> list[float]:
    """How many of the letters are an a."""
    return [float(text.count("a")) for text in completions]


def train_all(folder: Path) -> dict[str, Any]:
    """Train an agent of each kind and save it."""
    from textenv.agents.training import train

    histories = {}
    for name in SETTINGS:
        result = train(**arguments(name))
        result.agent.save(folder / name)
        histories[name] = [
            {key: value for key, value in row.items() if not key.startswith(("time/", "throughput/"))}
            for row in result.history
        ]
    return histories


def train_sharded(folder: Path) -> dict[str, Any]:
    """Train agents on sharded weights, where there are such, and save them."""
    changes = {"ppo": {"ema_decay": None}, "ilql": {}, "dpo": {}, "kto": {}, "sft": UNLIKE}
    return {name: trained(name, folder / name, **changed) for name, changed in changes.items()}


def trained(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Train an agent, save it, and tell how much of it this process holds."""
    from textenv.agents.training import train

    result = train(**arguments(name, **changes))
    agent = result.agent
    agent.save(folder)
    parameters = list(agent.policy.parameters())
    return {
        "sharded": agent.backend.lockstep,
        "loss": [row["loss"] for row in result.history],
        "norm": [row["grad_norm"] for row in result.history],
        # DeepSpeed leaves nothing of a parameter in its own place, where it is split.
        "held": sum(getattr(p, "_local_tensor", p).numel() or p.ds_tensor.numel() for p in parameters),
        "all": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "trains": sum(getattr(p, "ds_numel", p.numel()) for p in parameters if p.requires_grad),
        "moments": sum(part.numel() for part in getattr(agent.backend, "parts", ())),
    }


def train_zero(folder: Path) -> dict[str, Any]:
    """The same agents by DeepSpeed's engine, in each of its stages."""
    found = {}
    for stage in (1, 2, 3):
        os.environ.update(zero(stage))
        found[str(stage)] = train_sharded(folder / str(stage))
    found["bfloat16"] = trained("sft", folder / "bfloat16", **UNLIKE, autocast="bfloat16")
    return found


def rest_zero(folder: Path) -> dict[str, Any]:
    """The rest of two runs that one process began, by DeepSpeed's engine."""
    found = {}
    for stage in (2, 3):
        os.environ.update(zero(stage))
        found[str(stage)] = rest(folder / str(stage))
    return found


def refused(folder: Path) -> dict[str, Any]:
    """What does not go together with sharded weights."""
    from textenv.agents.training import train

    return {
        "average": caught(lambda: train(**arguments("ppo"))),
        "adapters": caught(lambda: train(**arguments("sft", policy_kwargs={"lora": True}))),
    }


def unlike_lengths(folder: Path) -> dict[str, Any]:
    """PPO where one process's responses end at once and the others' never do."""
    from textenv.agents.distributed import process_group
    from textenv.agents.training import train

    eos = arguments("ppo")["tokenizer"].eos_token_id

    def end(logits: Any, hidden: Any, t: Any) -> Any:
        logits = logits.clone()
        logits[:, eos] += 50.0 if process_group.rank() == 0 else -50.0
        return logits

    class Ends:
        def __call__(self, agent: Any, metrics: Any) -> None:
            agent.policy.set_logits_processor(end)

    changes = {"env_kwargs": {"max_new_tokens": 32}, "iterations": 3, "stop_at_kl": None}
    plain = {"dataset": None, "ptx_coef": 0.0, "ptx_batch_size": 32}
    result = train(**arguments("ppo", callbacks=[Ends()], **changes, **plain))
    return {"lengths": [row["episode/length"] for row in result.history], "steps": result.optimizer_steps}


def nan_reward(folder: Path) -> dict[str, Any]:
    """A reward that is NaN in process 1 alone."""
    from textenv.agents.distributed import process_group
    from textenv.agents.training import train

    def broken(completions: list[str], **columns: Any) -> list[float]:
        return [math.nan if process_group.rank() == 1 else 1.0 for _ in completions]

    return caught(lambda: train(**arguments("ppo", reward=broken, run_dir=own_folder(folder, "reward"))))


def nan_loss(folder: Path) -> dict[str, Any]:
    """A loss that is NaN in process 1 alone, in its second step."""
    from textenv.agents.distributed import process_group
    from textenv.agents.sft import SFT, SFTConfig

    class Broken(SFT):
        def loss(self, batch: Any, totals: Any) -> Any:
            loss, stats = super().loss(batch, totals)
            return loss * (
                math.nan if process_group.rank() == 1 and self.optimizer_steps == 1 else 1.0
            ), stats

    given = arguments("sft")
    config = SFTConfig(steps=4, batch_size=5, max_tokens_per_microbatch=40)
    agent = Broken(
        given["model"],
        dataset=TEXTS,
        tokenizer=given["tokenizer"],
        config=config,
        run_dir=own_folder(folder, "loss"),
    )
    return caught(agent.learn) | {"steps": agent.optimizer_steps}


def stop(folder: Path) -> dict[str, Any]:
    """A callback that stops in process 1 alone; evaluation, checkpoints and logs."""
    from textenv.agents.distributed import process_group
    from textenv.agents.training import train

    def after_two(agent: Any, metrics: Any) -> bool:
        return process_group.rank() == 1 and agent.iteration == 2

    result = train(
        **arguments(
            "ppo",
            callbacks=[after_two],
            loggers=["rich"],
            eval_prompts=["ab", "ba", "c"],
            eval_every=1,
            eval_episodes=7,
            run_dir=own_folder(folder, "stop"),
        )
    )
    assert result.evaluation is not None
    return {"iterations": len(result.history), "evaluation": result.evaluation.metrics}


def half(folder: Path) -> dict[str, Any]:
    """The first two of four iterations, with checkpoints."""
    from textenv.agents.training import train

    changes = {"iterations": 2, "checkpoint_every": 1, "run_dir": folder / "run", "ema_decay": None}
    result = train(**arguments("ppo", **changes))
    return {"tickets": result.episodes}


def rest(folder: Path) -> dict[str, Any]:
    """The rest of them."""
    from textenv.agents.training import train

    changes = {"iterations": 4, "checkpoint_every": 1, "run_dir": folder / "run", "ema_decay": None}
    result = train(**arguments("ppo", resume=True, **changes))
    result.agent.save(folder / "resumed")
    return {"tickets": result.episodes, "rows": len(result.history)}


def own_folder(folder: Path, name: str) -> Path:
    """A run's folder that no other process is told of: what stands there afterwards, this process wrote."""
    from textenv.agents.distributed import process_group

    return folder / f"{name}-{process_group.rank()}"


def caught(run: Callable[[], Any]) -> dict[str, Any]:
    """What a run raised."""
    try:
        run()
    except Exception as error:
        return {"error": type(error).__name__, "said": str(error)}
    return {"error": None}


def main(folder: Path, scenarios: Sequence[str]) -> None:
    """Run the scenarios, one after the other."""
    import torch

    torch.set_num_threads(1)
    from textenv.agents.distributed import process_group

    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        import deepspeed

        # An extension in C++ that it would compile first, which takes minutes; nothing here needs it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    process_group.start()
    found = {name: globals()[name](folder) for name in scenarios}
    (folder / f"{process_group.rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    exec_here()
    main(Path(sys.argv[1]), sys.argv[2:])
