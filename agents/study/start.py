"""The initial policy of a task and seed: made once, saved in the study's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock

from textenv.agents.distributed.devices import device_kwargs
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.study.config import TaskSetup
from textenv.agents.study.plan import given
from textenv.agents.train_setup.environments import training_data
from textenv.agents.train_setup.task_start import make_start, own_model
from textenv.tasks.task import TaskData
from textenv.utils.files import atomic_folder
from textenv.utils.json_files import read_object, write_json
from textenv.utils.redaction import masked

MARKER = "start.json"


def start_model(
    study: Path, label: str, setup: TaskSetup, seed: int, *, trust_remote_code: bool = False
) -> str:
    """Folder or hub id of the initial model of a task and seed; it is made if it does not exist.

    Several processes that need the same model wait for the first one to make it.

    Args:
        study: the study's folder.
        label: label of the task.
        setup: settings of the task.
        seed: seed of random weights and of the fine-tuning.
        trust_remote_code: run code that comes with a model.

    Raises:
        ValueError: if the task has no model, or no demonstrations to fine-tune on.
    """
    if setup.start is None and setup.model is not None:
        return setup.model
    folder = study / "starts" / label / f"seed-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    made_from = masked({"task": given(setup), "seed": seed})
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        marker = folder / MARKER
        if marker.exists() and read_object(marker) == made_from:
            return str(folder)
        policy = _make(setup, seed, trust_remote_code=trust_remote_code)
        with atomic_folder(folder, marker=MARKER) as temporary:
            policy.save(temporary)
            write_json(temporary / MARKER, made_from)
    return str(folder)


def task_data(setup: TaskSetup) -> TaskData:
    """The task's prompts, tokenizer and data for training."""
    env_kwargs: dict[str, Any] = {"task_kwargs": setup.env.task_kwargs}
    if setup.tokenizer is not None:
        env_kwargs["tokenizer"] = setup.tokenizer
    return training_data(setup.task or "", env_kwargs)


def _make(setup: TaskSetup, seed: int, *, trust_remote_code: bool) -> LanguagePolicy:
    data = task_data(setup)
    kwargs = {
        **device_kwargs(setup.policy.device),
        **setup.policy.kwargs(),
        **({"trust_remote_code": True} if trust_remote_code else {}),
    }
    return make_start(
        setup.model or own_model(setup.task, data),
        data,
        None if setup.start is None else setup.start.replace(seed=seed),
        seed=seed,
        dataset=setup.dataset,
        policy_kwargs=kwargs,
    )
