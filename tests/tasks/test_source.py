"""`EnvSource`: prompts that are read once, for several environments."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import TOKENIZER
from textenv.scoring import reward_wrappers
from textenv.tasks.make import make_env, make_vec_env
from textenv.tasks.source import make_source


def test_environments_of_one_source_share_its_prompts() -> None:
    source = make_source(prompts=["ab", "c"], tokenizer=TOKENIZER)
    assert (source.token_budget(), source.token_budget(3), source.token_budget(None, 5)) == (64, 3, 5)
    many = make_vec_env(3, prompts=source, max_new_tokens=2, rewards="length")
    one = make_env(prompts=source)
    assert many.unwrapped.prompts is source.prompts is one.unwrapped.prompts  # type: ignore[attr-defined]
    assert many.unwrapped.task_data is source.data  # type: ignore[attr-defined]
    assert (many.unwrapped.max_new_tokens, one.unwrapped.max_new_tokens) == (2, 64)  # type: ignore[attr-defined]
    assert [wrapper.name for wrapper in reward_wrappers(many)] == ["length"]
    assert make_source(prompts=source) is source
    assert make_source(prompts=source, tokenizer=TOKENIZER) is source  # the one that it was made with


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "random-walks"),
        ("split", "validation"),
        ("max_prompt_tokens", 1),
        ("truncation_side", "right"),
        ("chat_template", True),
    ],
)
def test_a_source_refuses_arguments_that_it_was_not_made_with(name: str, value: Any) -> None:
    source = make_source(prompts=["ab", "c"], tokenizer=TOKENIZER)
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be given when the EnvSource is made; .*got {value!r}"):
        make_source(prompts=source, **arguments)
    with pytest.raises(ValueError, match=f"{name} must be given when the EnvSource is made"):
        make_vec_env(2, prompts=source, **arguments)
    made = make_source("probe-end", split="validation")
    assert make_source("probe-end", made, split="validation") is made


def test_the_tasks_rules_are_defaults() -> None:
    source = make_source("probe-end")
    assert source.data is not None
    assert source.value("min_new_tokens", None, 0) == source.data.min_new_tokens
    assert source.value("min_new_tokens", 2, 0) == 2
    assert source.stop_token_ids([7], [8]) == [7]
    assert source.reward_specs(None) == list(source.data.rewards)
    assert source.reward_specs(["task", "length"]) == [*source.data.rewards, "length"]


def test_budgets_that_do_not_fit_together_are_refused() -> None:
    source = make_source("probe-end")
    with pytest.raises(ValueError, match="must be equal, got 3 and 4"):
        source.token_budget(3, 4)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 1, got 0"):
        source.token_budget(0)
    bare = make_source(prompts=source.prompts, tokenizer=source.tokenizer)
    with pytest.raises(ValueError, match="max_new_tokens must be given for a PromptSet without a task"):
        bare.token_budget()
