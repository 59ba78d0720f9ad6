"""Tiny models and episodes that the tests of policies and references share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.episodes.batch import EpisodeBatch

VOCAB = 50


def gpt2_config(**changes: Any) -> GPT2Config:
    """GPT-2 with tied embeddings; dropout 0.1, as GPT-2 has it."""
    sizes = {"n_layer": 3, "n_embd": 16, "n_head": 2, "vocab_size": VOCAB, "n_positions": 40}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return GPT2Config(**{**sizes, **tokens, **changes})


def llama_config(**changes: Any) -> LlamaConfig:
    """Llama with an LM head of its own, and dropout inside the attention function."""
    sizes = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": VOCAB}
    return LlamaConfig(**{**sizes, **tokens, "num_key_value_heads": 1, "attention_dropout": 0.1, **changes})


CONFIGS: dict[str, Any] = {"gpt2": gpt2_config, "llama": llama_config}


def make_policy(config: PretrainedConfig | None = None, **options: Any) -> LanguagePolicy:
    """A random policy whose critic is not zero."""
    policy = LanguagePolicy(gpt2_config() if config is None else config, **options)
    head = policy.value_head if policy.critic is None else policy.critic.value_head
    if head is not None:
        generator = torch.Generator().manual_seed(7)
        torch.nn.init.normal_(head.projection.last.weight, generator=generator)
    return policy


def episodes(count: int = 8, *, seed: int = 0, longest: int = 14, turns: bool = False) -> EpisodeBatch:
    """Random episodes of unlike length; with ``turns`` every fourth response token is somebody else's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(2, VOCAB, (size,), generator=generator).tolist()

    batch = EpisodeBatch.from_ids(
        [draw(1, 6) for _ in range(count)], [draw(1, longest) for _ in range(count)]
    )
    if turns:
        columns = torch.arange(batch.input_ids.shape[1])
        batch.action_mask &= (columns - batch.prompt_lengths.unsqueeze(-1)) % 4 != 3
    return batch


def step(policy: LanguagePolicy, batch: EpisodeBatch, learning_rate: float = 1e-2) -> None:
    """One optimizer step that moves everything trainable."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    out = policy(batch, values=policy.value_head is not None or policy.critic is not None)
    loss = -out.log_probs.sum() + (0.0 if out.values is None else out.values.sum())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
