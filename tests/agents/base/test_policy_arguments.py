"""``policy_kwargs`` may not hold what the agent itself gives its policy."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helpers.models import TOKENIZER
from textenv.agents import get_agent
from textenv.agents.base.arguments import BY_AGENT
from textenv.agents.training import train

ARGUMENTS = {
    "ppo": {"value_head", "head_kind"},
    "a2c": {"value_head", "head_kind"},
    "nlpo": {"value_head", "head_kind", "mask_top_p", "mask_min_tokens"},
    "ilql": {"beta", "num_q", "q_head", "top_k"},
    "reward-model": {"heads", "append_eos", "dropout"},
    "sb3": {"value_head"},
    "grpo": set(),
    "sft": set(),
}


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, own in ARGUMENTS.items() for argument in sorted({*own, *BY_AGENT})],
)
def test_an_argument_that_the_agent_sets_is_refused_with_its_setting(name: str, argument: str) -> None:
    cls: Any = get_agent(name)
    where = {**BY_AGENT, **cls.policy_arguments}[argument]
    assert set(cls.policy_arguments) == ARGUMENTS[name]
    with pytest.raises(TypeError, match=re.escape(f"policy_kwargs can't hold {argument!r}: {where}")):
        train(name, "model", dataset=[], tokenizer=TOKENIZER, policy_kwargs={argument: 1})


def test_settings_that_are_named_exist() -> None:
    for name in ARGUMENTS:
        cls: Any = get_agent(name)
        for text in {**BY_AGENT, **cls.policy_arguments}.values():
            found = re.fullmatch(r"it is the agent's setting (\w+)", text)
            assert found is None or hasattr(cls.config_class(), found[1]), (name, text)
