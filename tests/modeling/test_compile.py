"""Compiled teacher-forced passes: the same numbers and gradients, few compilations, decoding left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import GPT2LMHeadModel

from tests.helpers.env_helpers import EOS, V, vector_env
from tests.helpers.policy_helpers import episodes, gpt2_config, llama_config, make_policy
from textenv.agents.optim.fsdp import trunks
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.modeling.attention_masks import UnsupportedModelError
from textenv.modeling.compile import compile_trunk
from textenv.rollout import collect

SHAPES = ((6, 12), (3, 9))


def pair(config: Any, backend: str, **options: Any) -> tuple[LanguagePolicy, LanguagePolicy]:
    """The same policy, plain and compiled."""
    plain = make_policy(config, dtype=torch.float64, **options)
    return plain, make_policy(config, dtype=torch.float64, compile=backend, **options)


def graphs() -> int:
    """Graphs compiled so far in this process."""
    return int(counters["stats"]["unique_graphs"])


def test_numbers_and_gradients_are_those_of_the_plain_pass() -> None:
    policies = pair(gpt2_config(n_layer=1), "aot_eager", value_head="separate")
    before = graphs()
    for seed, (count, longest) in enumerate(SHAPES):
        batch = episodes(count, seed=seed, longest=longest)
        found = [policy.train()(batch, values=True, entropy=True) for policy in policies]
        for policy, out in zip(policies, found, strict=True):
            policy.zero_grad()
            (out.log_probs.sum() + out.values.square().sum() + out.entropy.sum()).backward()
        for name in ("log_probs", "values", "entropy"):
            ours, theirs = (getattr(out, name) for out in found)
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
        for (name, one), other in zip(policies[0].named_parameters(), policies[1].parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None and other.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, atol=1e-10, rtol=0)
        if not seed:
            first = graphs()
    assert first > before
    # Policy and critic, one graph more each at most once a shape has moved.
    assert graphs() <= first + 2


def test_adapters_checkpointing_packing_and_the_reference() -> None:
    options: dict[str, Any] = {"lora": {"r": 2}, "gradient_checkpointing": True}
    policies = pair(llama_config(num_hidden_layers=1), "eager", **options)
    for policy in policies:
        policy.packing = True
        policy.reference()
    with torch.no_grad():
        for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
            if one.requires_grad:
                one.add_(torch.randn_like(one) * 0.1)
                other.copy_(one)
    batch = episodes(5, longest=12)
    found = [(policy.train()(batch).log_probs, policy.reference().log_prob(batch)) for policy in policies]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3
    for log_probs, _ in found:
        log_probs.sum().backward()
    for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-10, rtol=0)


def test_decoding_is_left_alone() -> None:
    config = gpt2_config(vocab_size=V, bos_token_id=EOS, eos_token_id=EOS)
    plain, compiled = pair(config, "eager")
    before = graphs()
    ours, theirs = (collect(vector_env(3), policy, 6, seed=0) for policy in (plain, compiled))
    assert graphs() == before
    assert torch.equal(ours.input_ids, theirs.input_ids) and torch.equal(ours.log_probs, theirs.log_probs)


def test_hooks_on_the_model_have_its_own_forward_run() -> None:
    plain, compiled = pair(gpt2_config(n_layer=1), "eager")
    batch, calls = episodes(3), []
    for policy in (plain, compiled):
        policy.model.register_forward_hook(lambda *_: calls.append(1))
    before = graphs()
    torch.testing.assert_close(compiled(batch).log_probs, plain(batch).log_probs, atol=1e-10, rtol=0)
    assert len(calls) >= 2 and graphs() == before


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"compile must be True or one of torch's backends .*, got 'gcc'"):
        LanguagePolicy(gpt2_config(), compile="gcc")
    with pytest.raises(UnsupportedModelError, match="does not take the output of base_model unchanged"):
        compile_trunk(nn.Linear(1, 1))
    model = GPT2LMHeadModel(gpt2_config(n_layer=1))
    model.lm_head.register_forward_pre_hook(lambda _, args: (2.0 * args[0],))
    with pytest.raises(UnsupportedModelError, match="does not take the output of base_model unchanged"):
        compile_trunk(model)
    policy = LanguagePolicy(gpt2_config(), compile="eager", train_layers=1)
    assert policy.reference().mode == "copy"
    with pytest.raises(ValueError, match="compile must be off with sharded weights"):
        trunks(LanguagePolicy(gpt2_config(), compile="eager"))
    policy = LanguagePolicy(gpt2_config(), compile="eager", train_layers=1)
    with pytest.raises(ValueError, match="hooks into the trunk"):
        policy.reference("shared-trunk")


def test_the_option_reaches_the_policy() -> None:
    assert PolicyOptions(compile=True).kwargs() == {"compile": True}
    assert PolicyOptions().kwargs() == {}
    assert LanguagePolicy(gpt2_config(), **PolicyOptions(compile="eager").kwargs()).compile_backend == "eager"
