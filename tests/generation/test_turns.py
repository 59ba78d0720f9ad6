"""Policies on episodes of several turns: cached = uncached, and teacher-forced = decoded log-probs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
import transformers as tf
from torch import nn

import textenv
from tests.helpers.partners import TALKER, Guess, Slow
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.log_probs import token_log_probs

V = len(TALKER)
SIZES: dict[str, Any] = {"vocab_size": V, "bos_token_id": 14, "eos_token_id": 15, "pad_token_id": 15}
CONFIGS: dict[str, Any] = {
    "gpt2": tf.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=64, initializer_range=0.3, **SIZES),
    "mistral-window": tf.MistralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=6,
        initializer_range=0.3,
        **SIZES,
    ),
}


class Long(Guess):
    """Replies of one to six tokens."""

    max_reply_tokens = 8

    def reply(self, text: str) -> Any:
        reply = super().reply(text)
        return type(reply)(reply.text * (1 + sum(map(ord, text)) % 6), reply.reward, reply.done)


class SlowLong(Slow, Long):
    """The same, later."""


def model(name: str = "gpt2") -> nn.Module:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(CONFIGS[name]).double().eval()


def envs(num_envs: int = 4, partner: Any = Long, **changes: Any) -> Any:
    made = {"tokenizer": TALKER, "rewards": [], "max_turns": 4, "max_turn_tokens": 3, "partner": partner}
    return gym.make_vec("TextRLHF-v0", num_envs, **{**made, **changes})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("partner", "waiting"), [(Long, "block"), (SlowLong, "step")])
def test_cached_equals_uncached(name: str, partner: Any, waiting: str) -> None:
    lm, rule = model(name), {"min_new_tokens": 1}
    slow = textenv.collect(envs(3, **rule), DecodingPolicy(lm, cached=False), 16, seed=1)
    quick = textenv.collect(envs(5, partner, **rule), DecodingPolicy(lm), 16, seed=1, waiting=waiting)
    assert quick.input_ids.tolist() == slow.input_ids.tolist()
    assert quick.action_mask.tolist() == slow.action_mask.tolist() and quick.extras == slow.extras
    torch.testing.assert_close(quick.log_probs, slow.log_probs, rtol=0, atol=1e-10)
    turns = (quick.action_mask[:, 1:] & ~quick.action_mask[:, :-1]).sum(-1)
    assert turns.max() > 2 and turns.tolist() == [len(said) for said in quick.extras["turns"]]


def test_a_reply_is_appended_and_the_row_is_not_computed_again() -> None:
    lm = model()
    policy = DecodingPolicy(lm)
    env = envs(4)
    seen: list[tuple[int, int]] = []
    handle = lm.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs.get("input_ids", args and args[0]).shape)),
        with_kwargs=True,
    )
    textenv.collect(env, policy, 1, seed=0)  # with the self-check of the decoder
    seen.clear()
    batch = textenv.collect(env, policy, 12, seed=0)
    handle.remove()
    assert max(width for _, width in seen) <= 12 < int(batch.lengths.max())  # replies have up to 12
    assert any(width > 2 for _, width in seen)  # prompts have 3 tokens, and 2 of them are prefilled


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}])
def test_teacher_forced_log_probs_are_those_of_decoding(settings: dict[str, Any]) -> None:
    lm = model()
    batch = textenv.collect(envs(3, min_new_tokens=2), DecodingPolicy(lm, **settings), 12, seed=3)
    legality = textenv.TokenConstraints.from_sampling(batch.sampling)
    again = token_log_probs(lm, batch, legality=legality, **settings).log_probs
    torch.testing.assert_close(again, batch.log_probs, rtol=0, atol=1e-10)
    assert batch.turn_steps.max() <= 2 and batch.action_steps.max() > 2


def test_kl_with_the_start_is_zero_and_immediate_is_deferred() -> None:
    policy = LanguagePolicy(model())
    batches = []
    for scoring in ("deferred", "immediate"):
        env = envs(3, rewards=[["kl", {"coef": 0.1}]], partner=SlowLong)
        env.unwrapped.bind(policy)
        batches.append(textenv.collect(env, policy, 9, seed=0, scoring=scoring))
    for batch in batches:
        assert float(batch.reward_terms["raw/kl"].abs().max()) < 1e-6
        torch.testing.assert_close(batch.rewards, batch.reward_terms["partner"], atol=1e-6, rtol=0)
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()


def test_foreign_tokens_have_no_gradient() -> None:
    lm = model()
    batch = textenv.collect(envs(2), DecodingPolicy(lm), 6, seed=0)
    inputs = lm.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    logits = lm(inputs_embeds=inputs).logits
    found = token_log_probs(lm, batch)
    assert (found.log_probs[~batch.action_mask] == 0).all()
    # A loss over the actions alone reaches the logits before actions, and no other.
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    logits.retain_grad()
    (chosen * batch.action_mask[:, 1:]).sum().backward()
    reached = logits.grad.abs().sum(-1) > 0
    assert reached[:, :-1].tolist() == batch.action_mask[:, 1:].tolist() and not reached[:, -1].any()
