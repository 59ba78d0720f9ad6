"""Packing: a packed episode is the episode alone, in values and gradients, or the model is refused."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from tests.helpers.models import tiny
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.policies.critics import SeparateCritic
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.sft import SFT, SFTConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.attention_masks import UnsupportedModelError
from textenv.modeling.log_probs import token_log_probs
from textenv.modeling.packing import check_packing, pack

V = 37
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=V, n_positions=64, initializer_range=0.3, **NO_DROPOUT
    ),
    "llama": LlamaConfig(**SIZES, initializer_range=0.3),
    "mistral, window 3": MistralConfig(**SIZES, sliding_window=3, initializer_range=0.3),
    "gemma3, window 4 in every other layer": Gemma3TextConfig(
        **SIZES, sliding_window=4, sliding_window_pattern=2, initializer_range=0.3
    ),
    "qwen3": Qwen3Config(**SIZES, initializer_range=0.3),
}


def model_of(config: Any, attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=torch.float64, attn_implementation=attention
    )


def episodes(count: int = 14, longest: int = 9) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[int]:
        size = int(torch.randint(1, longest, (), generator=generator))
        return torch.randint(3, V, (size,), generator=generator).tolist()

    batch = EpisodeBatch.from_ids([draw() for _ in range(count)], [draw() for _ in range(count)])
    batch.action_mask[0, int(batch.prompt_lengths[0]) + 1] = False  # a token of another speaker
    return batch


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_same(first: list[Tensor], second: list[Tensor], atol: float = 1e-10) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=atol * max(1.0, float(other.abs().max())), rtol=0)


def test_rows_hold_every_token_once_and_little_padding() -> None:
    lengths = torch.randint(1, 20, (200,), generator=torch.Generator().manual_seed(1))
    found = pack(lengths)
    taken = torch.zeros(found.height, found.width)
    for row, start, size in zip(found.rows, found.starts, lengths, strict=True):
        taken[row, start : start + size] += 1
    assert taken.max() == 1
    assert taken.sum() == lengths.sum()
    assert taken.numel() < 1.05 * lengths.sum()


def test_an_episode_longer_than_the_bound_has_a_row_of_its_own() -> None:
    found = pack(torch.tensor([3, 9, 3]), max_width=6)
    assert found.width == 9
    assert found.rows.tolist() == [1, 0, 1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_entropies_states_and_gradients_are_those_without_packing(
    name: str, attention: str
) -> None:
    model, batch = model_of(CONFIGS[name], attention), episodes()
    check_packing(model)
    weights = torch.randn(
        batch.input_ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    head = nn.Linear(16, 1, dtype=torch.float64)
    results, grads = [], []
    for packing in (False, True):
        found = token_log_probs(
            model,
            batch,
            with_entropy=True,
            with_hidden=True,
            value_head=lambda x: head(x).squeeze(-1),
            packing=packing,
        )
        results.append([x.detach() for x in found])
        total = sum((weights * x).sum() for x in (found.log_probs, found.entropy, found.values))
        grads.append(gradients(model, total + found.hidden.square().sum()))
    # Eager attention has its softmax and Gemma its norms in float32, whatever the weights are.
    inside = 1e-4 if "gemma3" in name else 1e-6 if attention == "eager" else 1e-10
    assert_same(*results, atol=inside)
    assert_same(*grads, atol=inside)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("completion_only", [True, False])
def test_sft_has_the_same_loss_and_gradient_with_packing(name: str, completion_only: bool) -> None:
    losses, grads = [], []
    for packing in (False, True):
        config = SFTConfig(packing=packing, completion_only=completion_only)
        agent = SFT(model_of(CONFIGS[name]), dataset=episodes(), config=config)
        batch = TrainingBatch(agent.dataset)
        loss, _ = agent.loss(batch, agent.totals(batch))
        losses.append([loss.detach()])
        grads.append(gradients(agent.policy, loss))
    assert_same(*losses)
    assert_same(*grads)


def test_a_separate_critic_has_the_same_values_and_gradients_with_packing() -> None:
    batch = episodes()
    critic = SeparateCritic(model_of(CONFIGS["llama"]), 16).double()
    nn.init.normal_(next(p for n, p in critic.value_head.named_parameters() if p.dim() == 2))
    found = [critic(batch, packing=packing) for packing in (False, True)]
    assert_same(*[list(values) for values in found])
    grads = [gradients(critic, f.values.square().sum() + f.final_values.sum()) for f in found]
    assert_same(*grads)


def test_the_others_in_a_row_change_nothing() -> None:
    model, batch = model_of(CONFIGS["gpt2"]), episodes()
    first = token_log_probs(model, batch, packing=True).log_probs[0]
    batch.input_ids[1:] = batch.input_ids[1:].flip(0)
    torch.testing.assert_close(token_log_probs(model, batch, packing=True).log_probs[0], first)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=V, hidden_size=16, state_size=4, num_hidden_layers=1),
        BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2),
    ],
)
def test_a_model_that_cannot_pack_is_refused_by_name(config: Any) -> None:
    model = model_of(config, "eager")
    with pytest.raises(UnsupportedModelError, match=f"{type(model).__name__} cannot be trained with packing"):
        SFT(model, dataset=episodes(), config=SFTConfig(packing=True))


def test_a_policy_without_packing_takes_every_model() -> None:
    policy = LanguagePolicy(BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2))
    policy.packing = False
    assert policy.log_prob(episodes()).isfinite().all()


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_ppo_learns_the_same_with_packing(value_model: Any) -> None:
    weights = []
    for packing in (False, True):
        config = PPOConfig(
            iterations=2,
            episodes_per_iteration=16,
            learning_rate=1e-3,
            value_model=value_model,
            packing=packing,
            entropy_coef=0.01,
        )
        envs = gym.make_vec("TextRLHF-v0", num_envs=8, task="probe-end")
        model = tiny(envs.unwrapped.tokenizer)
        agent = PPO(model, envs=envs, config=config, policy_kwargs={"dtype": torch.float64})
        agent.learn()
        weights.append([p.detach() for p in agent.policy.parameters()])
    assert_same(*weights)
