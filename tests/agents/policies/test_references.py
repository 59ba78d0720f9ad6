"""References: exactly the starting policy, in every mode, and unmoved by training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GPTNeoXConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from tests.helpers.policy_helpers import (
    CONFIGS,
    VOCAB,
    episodes,
    gpt2_config,
    llama_config,
    make_policy,
    step,
)
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.model_setup import frozen_blocks, transformer_blocks

SMALL = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": VOCAB}
TOKENS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
FAMILIES: dict[str, PretrainedConfig] = {
    "gpt2": gpt2_config(),
    "llama": llama_config(),
    "qwen2": Qwen2Config(
        **SMALL, **TOKENS, intermediate_size=24, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "gemma3": Gemma3TextConfig(
        **SMALL, **TOKENS, intermediate_size=24, num_key_value_heads=1, head_dim=8, sliding_window=4
    ),
    "opt": OPTConfig(**SMALL, **TOKENS, ffn_dim=24, word_embed_proj_dim=8),
    "neox": GPTNeoXConfig(**SMALL, **TOKENS, intermediate_size=24),
    "mixtral": MixtralConfig(
        **SMALL,
        **TOKENS,
        intermediate_size=24,
        num_key_value_heads=1,
        num_local_experts=2,
        router_jitter_noise=0.1,
    ),
}
LORA = {"target_modules": "all-linear", "r": 2}
MODES: dict[str, dict[str, Any]] = {
    "copy": {},
    "shared-trunk": {"train_layers": 1},
    "adapters-off": {"lora": LORA},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_kl_is_exactly_zero_at_step_0_and_the_reference_stays(family: str, mode: str) -> None:
    policy = make_policy(FAMILIES[family], **MODES[mode])
    policy.train()
    batch, other = episodes(), episodes(seed=1)
    reference = policy.reference()
    assert reference.mode == mode
    assert torch.equal(policy.log_prob(batch), reference.log_prob(batch))
    together = policy.evaluate(other, reference=True)
    assert torch.equal(together.log_probs, together.ref_log_probs)
    start = together.ref_log_probs.clone()
    step(policy, batch)
    moved = policy.evaluate(other, reference=True)
    assert float((moved.log_probs - start).abs().max()) > 1e-3
    assert torch.equal(moved.ref_log_probs, start)
    assert torch.equal(reference.evaluate(other).log_probs, start)


@pytest.mark.parametrize("mode", MODES)
def test_kl_is_zero_in_micro_batches_too(mode: str) -> None:
    policy = make_policy(max_tokens=40, **MODES[mode])
    batch = episodes(9, turns=True)
    found = policy.evaluate(batch, reference=True)
    assert torch.equal(found.log_probs, found.ref_log_probs)
    torch.testing.assert_close(found.log_probs, policy(batch).log_probs.detach(), rtol=0, atol=1e-5)


def test_a_reference_is_what_the_weights_were_not_what_their_name_says(tmp_path: Path) -> None:
    LanguagePolicy(gpt2_config()).save(tmp_path)
    policy = LanguagePolicy(str(tmp_path))
    step(policy, episodes())
    batch = episodes(seed=1)
    assert torch.equal(policy.log_prob(batch), policy.reference().log_prob(batch))


def test_the_same_reference_is_given_every_time_until_it_is_reset() -> None:
    policy, batch = make_policy(), episodes()
    first = policy.reference()
    start = first.log_prob(batch).clone()
    step(policy, batch)
    assert policy.reference() is first
    assert torch.equal(policy.reference().log_prob(batch), start)
    policy.reset_reference()
    assert torch.equal(policy.reference().log_prob(batch), policy.log_prob(batch))
    with pytest.raises(ValueError, match="taken in mode 'copy', got 'shared-trunk'"):
        policy.reference("shared-trunk")


@pytest.mark.parametrize("family", CONFIGS)
def test_the_shared_trunk_runs_once_for_policy_and_reference(family: str) -> None:
    policy = make_policy(CONFIGS[family](), train_layers=1)
    reference = policy.reference()
    calls: list[int] = []
    transformer_blocks(policy.model)[0].register_forward_hook(lambda *_: calls.append(1))
    batch = episodes()
    ours, theirs = policy.log_prob(batch), reference.log_prob(batch)
    assert torch.equal(ours, theirs)
    once = len(calls)
    policy.invalidate()
    policy(batch)
    assert len(calls) == 2 * once, "the reference ran the trunk again"


def test_only_trained_weights_take_memory_again() -> None:
    policy = make_policy(llama_config(), train_layers=1)
    own = policy.reference().state_dict()
    assert own and all("layers.2." in name or "norm" in name or "lm_head" in name for name in own)
    with policy.reference().active() as model:
        shared = {id(p) for p in policy.model.parameters()} & {id(p) for p in model.parameters()}
    assert len(shared) == sum(1 for p in policy.model.parameters() if not p.requires_grad)
    assert not policy_has(policy, own)


def policy_has(policy: LanguagePolicy, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether training the policy could move these tensors."""
    own = {p.data_ptr() for p in policy.parameters()}
    return any(tensor.data_ptr() in own for tensor in tensors.values())


def test_a_tied_head_stays_frozen_and_an_untied_one_trains() -> None:
    tied, untied = make_policy(gpt2_config(), train_layers=1), make_policy(llama_config(), train_layers=2)
    trained = {name for name, p in tied.model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in tied.model.named_parameters() if ".h.2." in name or ".ln_f." in name
    }
    assert frozen_blocks(tied.model) == 2
    trained = {name for name, p in untied.model.named_parameters() if p.requires_grad}
    assert {"lm_head.weight", "model.norm.weight"} <= trained and "model.embed_tokens.weight" not in trained
    assert frozen_blocks(untied.model) == 1
    with pytest.raises(ValueError, match=r"train_layers must lie in \[1, 3\], got 4"):
        make_policy(train_layers=4)


def test_a_trunk_below_trained_embeddings_is_not_shared() -> None:
    policy = make_policy(train_layers=1)
    policy.model.get_input_embeddings().weight.requires_grad_(True)
    assert frozen_blocks(policy.model) == 0
    assert policy.reference().mode == "copy"


def test_adapters_that_have_learned_are_part_of_the_reference() -> None:
    policy, batch = make_policy(lora=LORA), episodes()
    step(policy, batch)
    assert policy.peft is not None
    again = LanguagePolicy(policy.peft)
    assert again.reference().mode == "copy"
    assert torch.equal(again.log_prob(batch), again.reference().log_prob(batch))
    assert all("lora_" in name for name in again.reference().state_dict())


def test_adapters_off_needs_a_frozen_base() -> None:
    policy = make_policy(lora=LORA)
    next(p for name, p in policy.model.named_parameters() if "lora_" not in name).requires_grad_(True)
    with pytest.raises(ValueError, match="needs a frozen base"):
        policy.reference("adapters-off")
    assert policy.reference().mode == "copy"


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("adapters-off", "needs a policy with adapters"),
        ("shared-trunk", "needs frozen bottom layers"),
        ("no", "one of"),
    ],
)
def test_modes_that_do_not_fit(mode: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy().reference(mode)


def test_state_of_a_reference_round_trips() -> None:
    policy, batch = make_policy(), episodes()
    start = policy.log_prob(batch).clone()
    state = {name: tensor.clone() for name, tensor in policy.reference().state_dict().items()}
    step(policy, batch)
    policy.reset_reference().load_state_dict(state)
    assert torch.equal(policy.reference().log_prob(batch), start)
    with pytest.raises(ValueError, match="differ"):
        policy.reference().load_state_dict({})


def test_a_reference_has_no_part_in_the_optimizer() -> None:
    policy = make_policy()
    before = len(list(policy.parameters()))
    with policy.reference().active() as model:
        assert not any(p.requires_grad for p in model.parameters())
    assert len(list(policy.parameters())) == before
    assert not policy.reference().log_prob(episodes()).requires_grad
