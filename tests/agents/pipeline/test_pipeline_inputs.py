"""What a pipeline's stages are made from is read once, however many environments are made of it."""

from __future__ import annotations

from typing import Any

from textenv.agents.pipeline.config import PipelineConfig
from textenv.agents.pipeline.inputs import StageInputs
from textenv.tasks.registry import _TASKS, make_task, register_task


def test_each_split_of_the_task_is_built_and_tokenized_once() -> None:
    built: list[str] = []

    @register_task("counted-for-a-pipeline")
    def build(split: str = "train") -> Any:
        """Random walks."""
        built.append(split)
        return make_task("random-walks").build(split)

    try:
        inputs = StageInputs(PipelineConfig(task="counted-for-a-pipeline", max_new_tokens=4))
        envs = {split: [inputs.envs([], split=split) for _ in range(2)] for split in ("train", "validation")}
        human = inputs.human_reference()
    finally:
        del _TASKS["counted-for-a-pipeline"]
    assert built == ["train", "validation"]
    for first, second in envs.values():
        assert first.unwrapped.prompts is second.unwrapped.prompts
        assert first.unwrapped.max_new_tokens == 4
    assert (envs["train"][0].unwrapped.shuffle, envs["validation"][0].unwrapped.shuffle) == (True, False)
    right = make_task("random-walks").build("validation").demonstrations
    assert human is not None and right is not None
    assert human.input_ids.tolist() == right.input_ids.tolist()
