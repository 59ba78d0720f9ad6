"""One adapter on an embedding and the LM head that is tied to it: one parameter, whatever moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from textenv.agents.policies.files import restore_policy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.episodes.batch import EpisodeBatch

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TIED = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=True,
)
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens"], "ensure_weight_tying": True}
EPISODES = EpisodeBatch.from_ids([[1, 2, 3], [3, 5, 6]], [[4, 5, 6, 7], [8, 9, 31, 0]])


def trained(lora: dict[str, Any], dtype: torch.dtype | None = None, **options: Any) -> LanguagePolicy:
    """A policy after two steps, moved to ``dtype`` before them."""
    policy = LanguagePolicy(TIED, lora=lora, **options)
    if dtype is not None:
        policy.to(dtype)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (-policy(EPISODES).log_probs.sum()).backward()
        optimizer.step()
    return policy


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=EPISODES.input_ids).logits
    return found


def plain_weights(policy: LanguagePolicy) -> dict[str, torch.Tensor]:
    """The base model's weights by their names without adapters."""
    state = policy.model.state_dict()
    return {name.replace(".base_layer", ""): state[name] for name in state if "lora_" not in name}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    ],
    ids=["adapter", "module", "tokens"],
)
def test_a_tie_holds_when_the_model_is_moved(options: dict[str, Any], tmp_path: Path) -> None:
    policy = trained(LORA | options, torch.float64)
    policy.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.dtype == torch.float64
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    torch.testing.assert_close(logits(plain), logits(policy.model), rtol=0, atol=1e-9)
    loaded = LanguagePolicy.load(tmp_path)
    loaded.to(torch.float32).to(torch.float64)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in policy.named_parameters()]


def test_a_tied_adapter_has_one_gradient() -> None:
    policy = LanguagePolicy(TIED, lora=LORA, dtype=torch.float64)
    names = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    prefix = "model.embed_tokens.lora_embedding_"
    assert names == [f"{prefix}A.default", f"{prefix}B.default"]
    a, b = (policy.model.get_parameter(name) for name in names)
    with torch.no_grad():
        a.normal_(generator=torch.Generator().manual_seed(0))
    loss = policy(EPISODES).log_probs.sum()
    found = torch.autograd.grad(loss, [a, b])

    # The model without adapters whose one embedding is W + (alpha / r) (B A)^T.
    base = AutoModelForCausalLM.from_config(TIED).double()
    base.load_state_dict(plain_weights(policy))
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    weight = base.model.embed_tokens.weight + 2.0 * (b @ a).t()
    out = torch.func.functional_call(
        base,
        {"model.embed_tokens.weight": weight, "lm_head.weight": weight},
        kwargs={"input_ids": EPISODES.input_ids, "attention_mask": EPISODES.attention_mask},
        tie_weights=False,
    ).logits
    chosen = out.log_softmax(-1)[:, :-1].gather(-1, EPISODES.input_ids[:, 1:, None])[..., 0]
    expected = torch.autograd.grad(chosen[EPISODES.action_mask[:, 1:].bool()].sum(), [a, b])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_peft_itself_reads_a_tied_adapter(tmp_path: Path) -> None:
    policy = LanguagePolicy(TIED, lora=LORA, seed=3)
    base = AutoModelForCausalLM.from_config(TIED)
    base.load_state_dict(plain_weights(policy))
    with torch.no_grad():
        policy.model.get_parameter("model.embed_tokens.lora_embedding_A.default").normal_()
    policy.save(tmp_path)
    other = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(other), logits(policy.model), rtol=0, atol=1e-5)


def test_a_folder_that_names_the_tied_weights_twice_loads(tmp_path: Path) -> None:
    policy = trained(LORA)
    policy.save(tmp_path)
    layers = load_file(tmp_path / "adapted_layers.safetensors")
    twins = {
        "lm_head.lora_A.default.weight": "model.embed_tokens.lora_embedding_B.default",
        "lm_head.lora_B.default.weight": "model.embed_tokens.lora_embedding_A.default",
    }
    layers |= {twin: layers[name].t().contiguous() for twin, name in twins.items()}
    save_file(layers, tmp_path / "adapted_layers.safetensors")
    saved = json.loads((tmp_path / "policy.json").read_text())
    saved["adapter_state"]["trainable"] += list(twins)
    (tmp_path / "policy.json").write_text(json.dumps(saved))
    resumed = LanguagePolicy(TIED, lora=LORA)
    restore_policy(resumed, tmp_path)
    for other in (LanguagePolicy.load(tmp_path), resumed):
        assert torch.equal(logits(other.model), logits(policy.model))


def test_tied_adapters_that_differ_are_refused() -> None:
    made: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_config(TIED), peft.LoraConfig(**LORA, task_type="CAUSAL_LM")
    )
    made.to(torch.float64)
    policy = LanguagePolicy(made)
    assert sum(p.requires_grad for p in policy.parameters()) == 2, "moved, but still equal: tied again"
    other: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_config(TIED), peft.LoraConfig(**LORA, task_type="CAUSAL_LM")
    )
    other.to(torch.float64)
    with torch.no_grad():
        other.get_base_model().lm_head.lora_A["default"].weight.add_(1)
    with pytest.raises(ValueError, match=r"asks for one adapter on the embedding and lm_head, but .* differ"):
        LanguagePolicy(other)
    with pytest.raises(ValueError, match="init_lora_weights 'olora' starts them apart"):
        LanguagePolicy(TIED, lora=LORA | {"init_lora_weights": "olora"})


def test_a_reference_of_tied_adapters_stays_while_they_train() -> None:
    policy = LanguagePolicy(TIED, lora=LORA | {"init_lora_weights": "gaussian"}, value_head="separate")
    with torch.no_grad():
        policy.model.get_parameter("model.embed_tokens.lora_embedding_A.default").normal_()
    before = policy.log_prob(EPISODES).clone()
    reference = policy.reference("copy")
    assert torch.equal(reference.log_prob(EPISODES), before)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    (-policy(EPISODES).log_probs.sum()).backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    policy.invalidate()
    assert torch.equal(reference.log_prob(EPISODES), before)
    assert not torch.equal(policy.log_prob(EPISODES), before)
