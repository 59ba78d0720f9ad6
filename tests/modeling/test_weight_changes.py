"""Whatever changes a model is noticed: acting and teacher-forced passes never answer for what it was."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.split_model import split_model
from textenv.modeling.weight_version import ModelWatch, watch_of

CONFIG = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "attention_dropout": 0.25,
}
EPISODES = EpisodeBatch.from_ids([[3, 4, 5], [6, 7]], [[8, 9, 2], [1, 10, 11, 12]])


def make_policy(*, adapters: bool = False) -> LanguagePolicy:
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]} if adapters else False
    policy = LanguagePolicy(LlamaConfig(**CONFIG), lora=lora, dtype=torch.float64)
    if policy.peft is not None:
        policy.peft.add_adapter("other", policy.peft.peft_config["default"])
        torch.manual_seed(1)
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
    return policy


def attention(policy: LanguagePolicy) -> Any:
    model: Any = policy.model
    return model.model.layers[0].self_attn


def layer(policy: LanguagePolicy) -> Any:
    return attention(policy).q_proj


def peft(policy: LanguagePolicy) -> Any:
    assert policy.peft is not None
    return policy.peft


def vector(policy: LanguagePolicy) -> None:
    parameters = list(policy.model.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters) * 1.5, parameters)


def new_parameter(policy: LanguagePolicy) -> None:
    layer(policy).weight = nn.Parameter(layer(policy).weight.detach() * -2)


def new_module(policy: LanguagePolicy) -> None:
    new = copy.deepcopy(attention(policy))
    nn.init.normal_(new.v_proj.weight)
    policy.model.model.layers[0].self_attn = new  # type: ignore[union-attr]


def new_head(policy: LanguagePolicy) -> None:
    model: Any = policy.model
    model.lm_head = nn.Linear(16, 13, bias=False, dtype=torch.float64)


def data(policy: LanguagePolicy) -> None:
    layer(policy).weight.data = layer(policy).weight.data * -2


def swapped_data(policy: LanguagePolicy) -> None:
    kept = layer(policy).weight.data
    layer(policy).weight.data = kept.neg()
    attention(policy).kept = kept  # the old memory lives on


def buffer(policy: LanguagePolicy) -> None:
    model: Any = policy.model
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 0.5


def buffer_in_place(policy: LanguagePolicy) -> None:
    model: Any = policy.model
    model.model.rotary_emb.inv_freq.mul_(0.5)


def loaded(policy: LanguagePolicy) -> None:
    state = {name: 2 * value for name, value in policy.model.state_dict().items()}
    policy.model.load_state_dict(state, assign=True)


def fused_step(policy: LanguagePolicy) -> None:
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1, fused=True)
    policy.model(input_ids=torch.tensor([[1, 2]])).logits[..., 3].sum().backward()
    optimizer.step()


def float32(policy: LanguagePolicy) -> None:
    new_parameter(policy)
    policy.model.float()


PLAIN = [
    vector,
    new_parameter,
    new_module,
    new_head,
    data,
    swapped_data,
    buffer,
    buffer_in_place,
    loaded,
    fused_step,
    float32,
]
ADAPTERS: dict[str, Callable[[Any], None]] = {
    "switched": lambda p: peft(p).set_adapter("other"),
    "off": lambda p: peft(p).base_model.disable_adapter_layers(),
    "scaled": lambda p: layer(p).set_scale("default", 3.0),
    "scaling edited": lambda p: layer(p).scaling.update(default=0.5),
    "merged with another": lambda p: peft(p).merge_adapter(["default", "other"]),
    "unloaded": lambda p: peft(p).unload(),
}


def observation(tokens: int) -> dict[str, Tensor]:
    mask = (torch.arange(6) < tokens).long().expand(2, 6).clone()
    ids = torch.tensor([[3, 4, 5, 8, 9, 2], [6, 7, 1, 10, 11, 12]])
    return {"input_ids": ids * mask, "attention_mask": mask, "prompt_length": torch.tensor([2, 2])}


def log_prob(policy: Any, tokens: int) -> Tensor:
    found: Tensor = policy.act(observation(tokens), torch.tensor([5, 6]))[1]["log_prob"]
    return found


def check(policy: LanguagePolicy, change: Callable[[Any], None]) -> None:
    """Acting from a filled cache and a remembered evaluation, before and after the change."""
    for tokens in (3, 4):
        log_prob(policy, tokens)
    before, version = policy.evaluate(EPISODES).log_probs, policy.weights_version
    stale = log_prob(DecodingPolicy(policy.model, cached=False), 5)
    change(policy)
    right = log_prob(DecodingPolicy(policy.model, cached=False), 5)
    assert not torch.allclose(right.double(), stale, atol=1e-3)
    torch.testing.assert_close(log_prob(policy, 5), right, atol=1e-5, rtol=0, check_dtype=False)
    torch.testing.assert_close(
        log_prob(policy, 6), log_prob(DecodingPolicy(policy.model, cached=False), 6), atol=1e-5, rtol=0
    )
    after = policy.evaluate(EPISODES).log_probs
    assert not torch.allclose(after.double(), before, atol=1e-3)
    fresh = policy.forward_model(policy.model, EPISODES).log_probs
    assert torch.equal(after, fresh) and policy.weights_version > version


@pytest.mark.parametrize("change", PLAIN, ids=lambda change: change.__name__)
def test_caches_see_what_is_done_to_weights(change: Callable[[Any], None]) -> None:
    check(make_policy(), change)


@pytest.mark.parametrize("change", ADAPTERS)
def test_caches_see_what_is_done_to_adapters(change: str) -> None:
    check(make_policy(adapters=True), ADAPTERS[change])


def test_the_same_adapters_named_again_are_no_change() -> None:
    policy = make_policy(adapters=True)
    state = watch_of(policy.model).state()
    with peft(policy).disable_adapter():
        policy.forward_model(policy.model, EPISODES)
    policy.model.train()
    policy.model.eval()
    assert watch_of(policy.model).state() == state


def test_a_freed_address_that_is_used_again_is_a_change() -> None:
    memory = bytearray(16)
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.frombuffer(memory, dtype=torch.float32).view(2, 2)
    watch = ModelWatch(layer)
    version, address = watch.state()[0], layer.weight.data_ptr()
    layer.weight.data = torch.ones(2, 2)
    layer.weight.data = torch.frombuffer(memory, dtype=torch.float32).view(2, 2)
    assert layer.weight.data_ptr() == address
    assert watch.state()[0] > version
    assert watch.state()[0] == watch.state()[0]


def test_a_dropout_put_back_voids_a_remembered_pass() -> None:
    policy = make_policy().train()
    before = policy.evaluate(EPISODES).log_probs
    assert policy.evaluate(EPISODES).log_probs is before
    attention(policy).attention_dropout = 0.9
    assert not torch.equal(policy.evaluate(EPISODES).log_probs, before)
    policy.eval()
    torch.testing.assert_close(policy.evaluate(EPISODES).log_probs, before)


def test_a_reference_sees_its_own_weights_change() -> None:
    policy = make_policy()
    reference = policy.reference("copy")
    before = reference.log_prob(EPISODES)
    fused_step(policy)
    assert reference.log_prob(EPISODES) is before
    with reference.active() as model:
        nn.utils.vector_to_parameters(
            1.5 * nn.utils.parameters_to_vector(model.parameters()), model.parameters()
        )
        right = policy.forward_model(model, EPISODES).log_probs
    assert torch.equal(reference.log_prob(EPISODES), right) and not torch.equal(right, before)


def test_a_reference_without_adapters_sees_the_base_change() -> None:
    policy = make_policy(adapters=True)
    reference = policy.reference("adapters-off")
    before = reference.log_prob(EPISODES)
    fused_step(policy)
    assert reference.log_prob(EPISODES) is before
    base = layer(policy).base_layer
    base.weight.data = base.weight.data * -2
    assert not torch.allclose(reference.log_prob(EPISODES), before)


def test_a_split_is_checked_again_when_a_module_is_replaced() -> None:
    model: Any = make_policy().model
    assert split_model(model).linear
    model.lm_head = nn.Sequential(nn.Linear(16, 13, bias=False, dtype=torch.float64), nn.Tanh())
    assert not split_model(model).linear


def test_a_replaced_trunk_does_not_run_as_it_was_compiled() -> None:
    policy = LanguagePolicy(LlamaConfig(**CONFIG), compile="eager")
    model: Any = policy.model
    before = policy.evaluate(EPISODES).log_probs
    new = copy.deepcopy(model.model)
    nn.init.normal_(new.embed_tokens.weight)
    model.model = new
    after = policy.evaluate(EPISODES).log_probs
    plain = LanguagePolicy(copy.deepcopy(model)).evaluate(EPISODES).log_probs
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, plain, atol=1e-5, rtol=0)


def test_a_watch_does_not_keep_its_model_alive() -> None:
    layer = nn.Linear(2, 2)
    watch = watch_of(layer)
    assert watch is watch_of(layer)
    del layer
    gc.collect()
    assert watch._model() is None
