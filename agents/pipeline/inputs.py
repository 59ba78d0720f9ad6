"""What the stages of a pipeline are made from: its task, the task's data, data sets and environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from textenv.agents.distributed.devices import device_kwargs
from textenv.agents.pipeline.config import PipelineConfig
from textenv.agents.pipeline.data import PROMPTS, divided, task_of
from textenv.agents.pipeline.stages import StageError
from textenv.agents.train_setup.arguments import fitting_budget
from textenv.data.sources import splits_of
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import reward_list
from textenv.tasks.make import make_vec_env
from textenv.tasks.registry import make_task
from textenv.tasks.source import EnvSource, make_source
from textenv.tasks.stop_tokens import generation_ends
from textenv.tasks.task import TaskData


class StageInputs:
    """Data sets, models and environments of a pipeline's stages.

    Args:
        config: settings of the pipeline.

    Raises:
        ValueError: if neither a task nor data are given, or they do not fit together.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        name, self.task_kwargs = task_of(config)
        self.task = make_task(name)
        source = config.policy or config.model
        if source is not None and self.task.takes("tokenizer"):
            self.task_kwargs.setdefault("tokenizer", source)
        self.data: TaskData = self.task.build("train", **self.task_kwargs)

    @property
    def judged(self) -> bool:
        """Whether a judge watches the stage "rl"."""
        cfg = self.config
        return not (cfg.judge_model is None and cfg.data.judge is None and self.data.feedback is None)

    def fine_tuning(self) -> tuple[Any, Any]:
        """Model and data of supervised fine-tuning.

        Raises:
            StageError: if there is none.
        """
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
            raise StageError(
                f"the task {self.task.name!r} has neither texts nor demonstrations; set data.sft (of pairs "
                "the chosen side is cloned), or policy"
            )
        model = cfg.model or (None if data.model_config is None else data.model_config())
        if model is None:
            raise StageError(f"the task {self.task.name!r} has no model; set model")
        return model, dataset

    def scoring(self, name: str) -> tuple[dict[str, Any], Any]:
        """Training and held-out data of the reward model or the judge; held-out data may be None.

        Raises:
            StageError: if there are no training data.
        """
        cfg, feedback = self.config, self.data.feedback
        if name == "judge":
            own = {"pairs": cfg.data.judge}
            given = None if feedback is None else (feedback.judge, feedback.judge_held_out)
        else:
            own = {"pairs": cfg.data.pairs, "ratings": cfg.data.ratings}
            given = None if feedback is None else (feedback.train, feedback.held_out)
        train: dict[str, Any] = {kind: path for kind, path in own.items() if path is not None}
        held_out: Any = cfg.data.held_out
        if not train:
            if given is None:
                raise StageError(
                    f"the task {self.task.name!r} has no human feedback; set data.pairs or data.ratings"
                )
            train, held_out = dict(given[0]), given[1] if held_out is None else held_out
        elif held_out is None:
            train, held_out = divided(train, cfg.data.validation_share)
        return train, held_out

    def envs(self, rewards: Sequence[Any], *, split: str) -> Any:
        """Environments with these rewards and those of the settings.

        Args:
            rewards: reward specs.
            split: "train", in random order, or "validation", in the prompts' own order.
        """
        cfg = self.config
        return make_vec_env(
            cfg.num_envs,
            task=self.task,
            rewards=[*rewards, *reward_list(cfg.rewards)],
            prompts=self.sources[split],
            max_new_tokens=self.budget,
            model_stop_token_ids=generation_ends(cfg.model or cfg.policy),
            shuffle=split == "train",
            device=device_kwargs(cfg.device).get("device", "cpu"),
        )

    @cached_property
    def sources(self) -> dict[str, EnvSource]:
        """Split ("train" or "validation") -> its prompts, read and tokenized once."""
        task, kwargs, given = self.task, self.task_kwargs, self.config.data.eval_prompts
        if given is None:
            held_out = make_source(task, task_kwargs=kwargs, split="validation")
        elif task.name == PROMPTS:
            split = "validation" if splits_of(given) else "train"
            held_out = make_source(task, task_kwargs={**kwargs, "data": given}, split=split)
        else:
            held_out = make_source(task, given, task_kwargs=kwargs, split="validation")
        train = replace(EnvSource.of(self.data), arguments={"task": task})
        return {"train": train, "validation": held_out}

    @cached_property
    def budget(self) -> int | None:
        """Token budget of a response; None is the task's. For the task "prompts" it fits into the model."""
        cfg = self.config
        if cfg.max_new_tokens is not None or self.task.name != PROMPTS:
            return cfg.max_new_tokens
        sources = list(self.sources.values())
        return fitting_budget(sources, cfg.policy or cfg.model, {"task_kwargs": self.task_kwargs})

    def human_reference(self) -> EpisodeBatch | None:
        """Human continuations of the validation prompts, if the task has demonstrations."""
        if self.config.data.eval_prompts is not None:
            return None
        data = self.sources["validation"].data
        return None if data is None else data.demonstrations
