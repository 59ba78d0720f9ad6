"""LanguagePolicy: alignment, exactness, independence of padding and split, files for plain transformers."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.helpers.numeric_helpers import relative_error
from tests.helpers.policy_helpers import (
    CONFIGS,
    VOCAB,
    episodes,
    gpt2_config,
    llama_config,
    make_policy,
    step,
)
from textenv.agents.losses.advantages import gae
from textenv.agents.losses.policy_gradient import entropy_loss, ppo_policy_loss, ppo_value_loss
from textenv.agents.optim.optimizer import clip_gradients, make_optimizer, make_schedule
from textenv.agents.policies.heads import ILQLHeads, ValueHead
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch

CRITICS = ["shared", "separate"]


def by_hand(policy: LanguagePolicy, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """Log-probs and last hidden states by transformers' own forward, one row at a time without padding."""
    log_probs = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    hidden = torch.zeros(*batch.input_ids.shape, policy.hidden_size, dtype=torch.float64)
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        out = policy.model(input_ids=ids, output_hidden_states=True)
        scores = torch.log_softmax(out.logits[0] / policy.temperature, -1)
        log_probs[row, 1:length] = scores[:-1].gather(-1, ids[0, 1:, None]).squeeze(-1).double()
        hidden[row, :length] = out.hidden_states[-1][0].double()
    return torch.where(batch.action_mask, log_probs, 0.0), hidden


# -- what a pass gives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_log_probs_values_and_final_values_by_the_plain_forward(family: str) -> None:
    policy = make_policy(CONFIGS[family](), value_head=True, dtype=torch.float64, temperature=0.7)
    assert policy.value_head is not None
    batch = episodes(turns=True)
    found = policy.evaluate(batch, values=True, entropy=True, final_values=True)
    expected, hidden = by_hand(policy, batch)
    torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=1e-10)
    # V of the state before the token: the hidden state of the column before it.
    values = torch.zeros_like(expected)
    values[:, 1:] = policy.value_head(hidden)[:, :-1]
    torch.testing.assert_close(found.values, torch.where(batch.action_mask, values, 0.0), rtol=0, atol=1e-10)
    last = policy.value_head(hidden)[torch.arange(len(batch)), batch.lengths - 1]
    torch.testing.assert_close(found.final_values, last, rtol=0, atol=1e-10)
    assert not found.entropy[~batch.action_mask].any() and bool((found.entropy[batch.action_mask] > 0).all())


def test_a_separate_critic_starts_as_the_shared_one_and_moves_alone() -> None:
    shared, separate = make_policy(value_head="shared"), make_policy(value_head="separate")
    assert separate.critic is not None and shared.value_head is not None
    separate.critic.value_head.load_state_dict(shared.value_head.state_dict())
    batch = episodes(turns=True)
    a = shared.evaluate(batch, final_values=True)
    b = separate.evaluate(batch, final_values=True)
    torch.testing.assert_close(a.values, b.values, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.final_values, b.final_values, rtol=0, atol=1e-5)
    separate(batch, values=True).values.sum().backward()
    assert all(p.grad is None for p in separate.model.parameters())
    assert all(p.grad is not None for p in separate.critic.parameters() if p.requires_grad)


def test_a_separate_critic_has_no_lm_head_and_shares_what_is_frozen() -> None:
    policy = make_policy(llama_config(), value_head="separate", train_layers=1)
    assert policy.critic is not None
    assert not any(p.shape[0] == VOCAB and p.requires_grad for p in policy.critic.parameters())
    own = {id(p) for p in policy.critic.parameters()} & {id(p) for p in policy.model.parameters()}
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    assert len(own) == len(frozen)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_pass_with_gradient_is_the_pass_without(critic: Any) -> None:
    policy = make_policy(value_head=critic).train()
    batch = episodes(turns=True)
    found = policy.evaluate(batch, values=True, entropy=True)
    out = policy(batch, values=True, entropy=True)
    assert torch.equal(out.log_probs.detach(), found.log_probs)
    assert torch.equal(out.values.detach(), found.values)
    assert torch.equal(out.entropy.detach(), found.entropy)


@pytest.mark.parametrize("autocast", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_ratio_is_exactly_one_at_learning_rate_zero(autocast: Any, checkpointing: bool) -> None:
    policy = make_policy(value_head=True, autocast=autocast, gradient_checkpointing=checkpointing).train()
    batch = episodes(turns=True)
    old = policy.evaluate(batch)
    for _ in range(2):
        out = policy(batch, values=True)
        _, stats = ppo_policy_loss(
            out.log_probs, old.log_probs, torch.ones_like(out.log_probs), batch.action_mask
        )
        assert float(stats["ratio"]) == 1.0 and float(stats["approx_kl"]) == 0.0
        assert torch.equal(out.values, old.values)
        step(policy, batch, learning_rate=0.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_no_gradient(checkpointing: bool) -> None:
    plain, other = make_policy(), make_policy(gradient_checkpointing=checkpointing)
    batch = episodes()
    for policy in (plain, other):
        policy.train()
        policy(batch).log_probs.sum().backward()
    gradients = [[p.grad for p in policy.parameters()] for policy in (other, plain)]
    assert relative_error(*gradients) < 1e-5


def test_bfloat16_autocast_keeps_log_probs_and_values_in_float32() -> None:
    policy = make_policy(value_head=True, autocast="bfloat16")
    batch = episodes()
    low, exact = policy.evaluate(batch), make_policy(value_head=True).evaluate(batch)
    assert low.log_probs.dtype == low.values.dtype == torch.float32
    torch.testing.assert_close(low.log_probs, exact.log_probs, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="autocast must be one of"):
        policy.autocast = "bf16"  # type: ignore[assignment]


@pytest.mark.parametrize("critic", CRITICS)
def test_padding_and_row_order_change_nothing(critic: Any) -> None:
    policy = make_policy(value_head=critic, dtype=torch.float64)
    batch = episodes(turns=True)
    found = policy.evaluate(batch, final_values=True)
    order = torch.randperm(len(batch))
    wide = EpisodeBatch.concat([batch, episodes(1, longest=15, seed=9)]).select(
        torch.cat([order, torch.tensor([8])])
    )
    again = policy.evaluate(wide, final_values=True)
    length = batch.input_ids.shape[1]
    tolerance = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(again.log_probs[:8, :length], found.log_probs[order], **tolerance)
    torch.testing.assert_close(again.values[:8, :length], found.values[order], **tolerance)
    torch.testing.assert_close(again.final_values[:8], found.final_values[order], **tolerance)


def test_parts_give_what_the_whole_gives() -> None:
    whole = make_policy(value_head=True)
    parts = make_policy(value_head=True, max_tokens=30)
    batch = episodes(11, turns=True)
    a = whole.evaluate(batch, entropy=True, final_values=True)
    b = parts.evaluate(batch, entropy=True, final_values=True)
    for name in ("log_probs", "values", "entropy", "final_values"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-5)


def ppo_gradient(policy: LanguagePolicy, batch: EpisodeBatch, parts: list[Tensor]) -> list[Tensor]:
    """Gradient of PPO's whole loss, accumulated over ``parts`` with denominators of the whole batch."""
    mask, tokens = batch.action_mask, float(batch.action_mask.sum())
    old = policy.evaluate(batch)
    noise = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    old_log_probs = old.log_probs + 0.2 * noise * mask
    advantages, returns = gae(noise * mask, mask, values=old.values)
    policy.zero_grad(set_to_none=True)
    for rows in parts:
        part = batch.select(rows)
        width = part.input_ids.shape[1]
        out = policy(part, values=True, entropy=True)
        own = part.action_mask
        policy_loss, _ = ppo_policy_loss(
            out.log_probs, old_log_probs[rows, :width], advantages[rows, :width], own, denominator=tokens
        )
        value_loss, _ = ppo_value_loss(
            out.values, old.values[rows, :width], returns[rows, :width], own, denominator=tokens
        )
        bonus = entropy_loss(out.entropy, own, denominator=tokens)
        (policy_loss + 0.1 * value_loss + 0.01 * bonus).backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("critic", CRITICS)
def test_the_gradient_does_not_depend_on_the_micro_batches(family: str, critic: Any) -> None:
    policy = make_policy(CONFIGS[family](), value_head=critic, dtype=torch.float64).train()
    batch = episodes(8, turns=True)
    everything = ppo_gradient(policy, batch, [torch.arange(8)])
    for parts in (torch.arange(8).split(3), torch.randperm(8).split(1), torch.arange(8).flip(0).split(5)):
        for a, b in zip(ppo_gradient(policy, batch, list(parts)), everything, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_legality_comes_from_the_episodes() -> None:
    policy = make_policy()
    rule = TokenConstraints(
        vocab_size=VOCAB - 5, min_new_tokens=2, stop_token_ids=(1,), suppressed_tokens=(7,)
    )
    batch = EpisodeBatch.from_ids([[3, 4]], [[5, 6, 8]])
    free = policy.log_prob(batch).clone()
    bound = EpisodeBatch.from_ids([[3, 4]], [[5, 6, 8]], sampling=rule.to_sampling())
    ruled = policy.log_prob(bound)
    assert bool((ruled[batch.action_mask] > free[batch.action_mask]).all())
    assert torch.equal(make_policy(legality=rule).log_prob(batch), ruled)


# -- dropout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_dropout_is_off_in_train_mode(family: str) -> None:
    config = CONFIGS[family]()
    plain = AutoModelForCausalLM.from_config(config).train()
    ids = torch.arange(2, 22).unsqueeze(0)
    assert not torch.equal(plain(ids).logits, plain(ids).logits), "the config has no dropout to turn off"
    policy = LanguagePolicy(plain, lora={"target_modules": "all-linear", "lora_dropout": 0.5}).train()
    nn.init.normal_(next(p for name, p in policy.named_parameters() if "lora_B" in name))
    assert policy.model.training
    assert torch.equal(plain(ids).logits, plain(ids).logits)
    assert torch.equal(policy(episodes()).log_probs, policy(episodes()).log_probs)


def test_a_saved_config_keeps_its_dropout(tmp_path: Path) -> None:
    policy = LanguagePolicy(gpt2_config())
    assert policy.model.config.attn_pdrop == 0.0
    policy.save(tmp_path)
    assert policy.model.config.attn_pdrop == 0.0
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.attn_pdrop == 0.1


def test_fused_activations_are_the_same_function() -> None:
    plain = AutoModelForCausalLM.from_config(gpt2_config()).double().eval()
    ids = torch.arange(2, 22).unsqueeze(0)
    before = plain(ids).logits
    policy = LanguagePolicy(plain)
    kinds = {type(module).__name__ for module in policy.model.modules()}
    assert "GELUTanh" in kinds and "NewGELUActivation" not in kinds
    torch.testing.assert_close(plain(ids).logits, before, rtol=0, atol=1e-12)


# -- cache ---------------------------------------------------------------------------------------------------


def count_passes(policy: LanguagePolicy) -> list[int]:
    """A list that grows by one at every forward of the model."""
    calls: list[int] = []
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_the_same_question_is_answered_once() -> None:
    policy, batch = make_policy(value_head=True), episodes()
    calls = count_passes(policy)
    log_probs = policy.log_prob(batch)
    once = len(calls)
    assert policy.evaluate(batch).log_probs is log_probs and policy.values(batch) is not None
    assert len(calls) == once
    policy.entropy(batch)
    assert len(calls) > once


def change_optimizer(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    step(policy, batch)


def change_weight(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    with torch.no_grad():
        next(policy.model.parameters()).mul_(1.5)


def change_head(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    with torch.no_grad():
        policy.value_head.projection.last.weight.mul_(1.5)  # type: ignore[union-attr]


def change_tokens(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    batch.input_ids[:, 0] = 7


def change_mask(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    batch.action_mask = batch.action_mask & (torch.arange(batch.input_ids.shape[1]) % 2 == 0)


def change_result(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    policy.log_prob(batch).zero_()


def change_data(policy: LanguagePolicy, batch: EpisodeBatch) -> None:
    next(policy.model.parameters()).data.mul_(1.5)
    policy.invalidate()


@pytest.mark.parametrize(
    "change",
    [change_optimizer, change_weight, change_head, change_tokens, change_mask, change_result, change_data],
)
def test_the_memo_forgets_when_anything_changes(change: Any) -> None:
    policy, batch = make_policy(value_head=True), episodes()
    before = policy.evaluate(batch)
    kept = [before.log_probs.clone(), before.values.clone()]
    change(policy, batch)
    after = policy.evaluate(batch)
    fresh = policy(batch, values=True)
    assert torch.equal(after.log_probs, fresh.log_probs) and torch.equal(after.values, fresh.values)
    if change is not change_result:
        assert not (torch.equal(after.log_probs, kept[0]) and torch.equal(after.values, kept[1]))


# -- acting --------------------------------------------------------------------------------------------------


def test_acting_gives_the_log_probs_and_values_of_the_teacher_forced_pass() -> None:
    policy = make_policy(value_head=True, temperature=0.8)
    obs = {
        "input_ids": torch.tensor([[5, 6, 7, 0, 0], [8, 0, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]),
        "prompt_length": torch.tensor([3, 1]),
    }
    actions, info = policy.act(obs, torch.tensor([11, 12]))
    again, _ = policy.act(obs, torch.tensor([11, 12]))
    assert torch.equal(actions, again)
    batch = EpisodeBatch.from_ids([[5, 6, 7], [8]], [[int(actions[0])], [int(actions[1])]])
    found = policy.evaluate(batch)
    torch.testing.assert_close(info["log_prob"], found.log_probs.sum(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(info["value"], found.values.sum(-1), rtol=0, atol=1e-5)


def test_training_on_filtered_actions_warns_once() -> None:
    policy = make_policy(top_k=5)
    batch = EpisodeBatch.from_ids([[3, 4]], [[5, 6]], sampling=policy.sampling())
    with pytest.warns(UserWarning, match=r"drawn with \{'top_k': 5\}.*probability ratios are wrong"):
        policy(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy(batch)
        assert policy.warn_of_filters()
        assert not make_policy().warn_of_filters()
        make_policy(top_p=0.9)(episodes())


# -- construction --------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed_and_leave_the_global_state() -> None:
    state = torch.random.get_rng_state()
    a, b, c = (
        LanguagePolicy(gpt2_config(), seed=seed, value_head=True, head_kind="mlp") for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_values_start_at_zero() -> None:
    for critic in CRITICS:
        assert not LanguagePolicy(gpt2_config(), value_head=critic).values(episodes()).any()


def test_what_cannot_be() -> None:
    with pytest.raises(TypeError, match="model must be a hub id"):
        LanguagePolicy(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give one; got both"):
        make_policy(lora=True, train_layers=1)
    with pytest.raises(ValueError, match="values need a critic"):
        make_policy()(episodes(), values=True)
    with pytest.raises(ValueError, match=r"must map \(2, 3, 16\) to \(2, 3\), got \(2, 3, 1\)"):
        make_policy(value_head=nn.Linear(16, 1))
    with pytest.raises(ValueError, match="critic must be one of"):
        make_policy(value_head="twin")
    with pytest.raises(ValueError, match="has a shared critic, expected a separate one"):
        LanguagePolicy(gpt2_config(), value_head=True).add_critic("separate")
    with pytest.raises(ValueError, match="max_tokens must be >= 1, got 0"):
        make_policy(max_tokens=0)


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'textenv\[lora\]'"):
        LanguagePolicy(gpt2_config(), lora=True)


def test_lora_trains_adapters_only() -> None:
    policy = make_policy(lora={"target_modules": "all-linear", "r": 2}, value_head=True)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name or name.startswith("value_head") for name in trained)
    base = [p.clone() for p in policy.parameters() if not p.requires_grad]
    step(policy, episodes())
    assert all(
        torch.equal(a, b)
        for a, b in zip(base, [p for p in policy.parameters() if not p.requires_grad], strict=True)
    )


# -- files ---------------------------------------------------------------------------------------------------


SETUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"value_head": True},
    "separate": {"value_head": "separate", "head_kind": "mlp"},
    "frozen": {"value_head": True, "train_layers": 1},
    "lora": {"value_head": True, "lora": {"target_modules": "all-linear", "r": 2}},
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("setup", SETUPS)
def test_a_saved_policy_loads_in_plain_transformers_and_here(family: str, setup: str, tmp_path: Path) -> None:
    policy = make_policy(CONFIGS[family](), temperature=0.7, **SETUPS[setup])
    batch, other = episodes(), episodes(seed=5)
    start = policy.reference().log_prob(other).clone()
    step(policy, batch)
    policy.save(tmp_path, reference=True)
    log_probs = policy.log_prob(other)
    found = policy.evaluate(other, final_values=policy.value_head is not None)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.p*t"))

    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    again = LanguagePolicy(plain, temperature=0.7)
    # Merging adapters rounds.
    torch.testing.assert_close(again.log_prob(other), log_probs, rtol=0, atol=1e-5 if setup == "lora" else 0)

    loaded = LanguagePolicy.load(tmp_path)
    assert loaded.temperature == 0.7
    result = loaded.evaluate(other, final_values=policy.value_head is not None)
    for a, b in zip(result, found, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    assert loaded.reference().mode == policy.reference().mode
    assert torch.equal(loaded.reference().log_prob(other), start)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in loaded.named_parameters() if p.requires_grad}
    step(policy, batch)
    step(loaded, batch)
    assert torch.equal(policy.log_prob(other), loaded.log_prob(other)), "training on differs after a load"


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no policy\.json"):
        LanguagePolicy.load(tmp_path)
    make_policy(value_head=True).save(tmp_path)
    with pytest.raises(ValueError, match=r"it lacks \['value_head"):
        LanguagePolicy.load(tmp_path, value_head=False)


def test_heads_of_a_subclass_are_saved(tmp_path: Path) -> None:
    class WithHeads(LanguagePolicy):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.heads = ILQLHeads(self.hidden_size, VOCAB, kind="mlp")

    policy = WithHeads(gpt2_config())
    for p in policy.heads.parameters():
        nn.init.normal_(p)
    policy.save(tmp_path)
    loaded = WithHeads.load(tmp_path)
    for a, b in zip(policy.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_tokenizer_is_saved(tmp_path: Path, byte_tokenizer: Any) -> None:
    policy = LanguagePolicy(gpt2_config(vocab_size=300), tokenizer=byte_tokenizer)
    assert policy.vocab_size == 259
    policy.save(tmp_path)
    loaded = LanguagePolicy.load(tmp_path)
    assert loaded.tokenizer is not None and loaded.vocab_size == 259


# -- heads and optimizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_ilql_heads_at_actions_by_whole_vocabularies(kind: Any) -> None:
    heads = ILQLHeads(6, 11, kind=kind).double()
    for p in heads.parameters():
        nn.init.normal_(p)
    hidden, actions = torch.randn(7, 6, dtype=torch.float64, requires_grad=True), torch.arange(7)
    whole = [head(hidden) for head in heads.q_heads]
    least = torch.stack([head(hidden) for head in heads.target_q_heads]).amin(0)
    found = heads(hidden, actions)
    for q, expected, log_prob in zip(found.q, whole, found.q_log_probs, strict=True):
        torch.testing.assert_close(q, expected[torch.arange(7), actions])
        torch.testing.assert_close(log_prob, torch.log_softmax(expected, -1)[torch.arange(7), actions])
    torch.testing.assert_close(found.target_q, least[torch.arange(7), actions])
    torch.testing.assert_close(heads.advantage(hidden), least - heads.v_head(hidden).unsqueeze(-1))
    assert not found.target_q.requires_grad

    def gradients(max_bytes: int) -> list[Tensor]:
        heads.zero_grad(set_to_none=True)
        out = heads(hidden, actions, max_bytes=max_bytes)
        (torch.stack(out.q).sum() + torch.stack(out.q_log_probs).sum() + out.state_values.sum()).backward()
        return [p.grad.clone() for p in heads.parameters() if p.grad is not None]

    for a, b in zip(gradients(1 << 20), gradients(2 * 11 * 4), strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in heads.target_q_heads.parameters())


def test_target_heads_move_by_alpha() -> None:
    heads = ILQLHeads(4, 5)
    with torch.no_grad():
        for p in heads.q_heads.parameters():
            p.fill_(1.0)
    heads.sync(0.25)
    assert all(bool((p == 0.25).all()) for p in heads.target_q_heads.parameters())
    heads.sync(0.25)
    assert all(bool((p == 0.4375).all()) for p in heads.target_q_heads.parameters())
    heads.sync(1.0)
    assert all(bool((p == 1.0).all()) for p in heads.target_q_heads.parameters())
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2"):
        heads.sync(2)
    with pytest.raises(ValueError, match="num_q must be >= 1, got 0"):
        ILQLHeads(4, 5, num_q=0)


def test_float32_heads_on_a_bfloat16_trunk() -> None:
    assert ValueHead(4)(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ValueError, match="head kind must be one of"):
        ValueHead(4, kind="deep")  # type: ignore[arg-type]


def test_optimizer_decays_matrices_only_and_knows_tied_weights_once() -> None:
    policy = make_policy(value_head=True)
    optimizer = make_optimizer(policy, learning_rate=0.1, weight_decay=0.5)
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert all(p.dim() >= 2 for p in groups[0.5]) and all(p.dim() < 2 for p in groups[0.0])
    assert len(groups[0.5]) + len(groups[0.0]) == len(list(policy.parameters()))
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), learning_rate=0.1)
    with pytest.raises(ValueError, match="learning_rate must be >= 0, got -1"):
        make_optimizer(policy, learning_rate=-1)


def test_schedules() -> None:
    def rates(name: str, **options: Any) -> list[float]:
        optimizer = make_optimizer(nn.Linear(2, 2), learning_rate=1.0)
        schedule = make_schedule(optimizer, name, **options)
        found = []
        for _ in range(4):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    assert rates("constant") == [1.0] * 4
    assert rates("constant", warmup_steps=2) == [0.0, 0.5, 1.0, 1.0]
    assert rates("linear", total_steps=4) == [1.0, 0.75, 0.5, 0.25]
    assert rates("cosine", total_steps=4) == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    with pytest.raises(ValueError, match="schedule must be one of"):
        rates("square")
    with pytest.raises(ValueError, match="schedule 'linear' needs total_steps, got None"):
        rates("linear")


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("total", "warm"), [(7, 0), (7, 3), (3, 3), (2, 5)])
def test_schedules_are_those_of_transformers(name: str, total: int, warm: int) -> None:
    from transformers import get_scheduler

    known = f"{name}_with_warmup" if name == "constant" and warm else name
    made = [make_optimizer(nn.Linear(2, 2), learning_rate=3e-4) for _ in range(2)]
    own = make_schedule(made[0], name, total_steps=total, warmup_steps=warm)
    theirs = get_scheduler(known, made[1], num_warmup_steps=warm, num_training_steps=total)
    for _ in range(9):
        assert own.get_last_lr() == theirs.get_last_lr()
        for optimizer, schedule in zip(made, (own, theirs), strict=True):
            optimizer.step()
            schedule.step()


def test_gradients_are_clipped_by_their_global_norm() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(clip_gradients([a, b], None)) == 5.0 and float(a.grad) == 3.0
    assert float(clip_gradients([a, b], 1.0)) == 5.0
    assert float(a.grad) == pytest.approx(0.6, abs=1e-5) and float(b.grad) == pytest.approx(0.8, abs=1e-5)
    a.grad = torch.tensor([torch.nan])
    with pytest.raises(ValueError, match="gradient norm is nan"):
        clip_gradients([a, b], 1.0)
    assert float(b.grad) == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_that_a_model_is_made_from_stays_as_it_was(name: str) -> None:
    config = CONFIGS[name]()
    before = config.to_dict()
    first = LanguagePolicy(config)
    assert first.model.config is not config
    LanguagePolicy(config, dtype=torch.float64)
    assert config.to_dict() == before
