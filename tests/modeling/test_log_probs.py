"""Teacher-forced log-probs: equal to log_softmax and gather, values and gradients, on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.fused_log_probs import linear_log_probs
from textenv.modeling.log_probs import length_groups, single_length_group, token_log_probs
from textenv.modeling.split_model import split_model

V = 37
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": V, "n_positions": 64}
GPT2 |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2(dtype: torch.dtype = torch.float64, **changes: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**GPT2, "initializer_range": 0.3, **changes})).to(dtype)


def episodes(seed: int = 0) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(3, V, (count,), generator=generator).tolist()

    batch = EpisodeBatch.from_ids([ids(n) for n in (3, 1, 5, 2)], [ids(n) for n in (9, 2, 1, 4)])
    # A token of another speaker inside the first response.
    batch.action_mask[0, 5] = False
    return batch


def plain(
    model: nn.Module, batch: EpisodeBatch, temperature: float = 1.0, legality: TokenConstraints | None = None
) -> tuple[Tensor, Tensor]:
    """(B, L) log-probs and entropies the obvious way: all logits, log_softmax, gather."""
    logits = model(batch.input_ids, attention_mask=batch.attention_mask.long()).logits[:, :-1]
    if legality is not None:
        logits = legality.apply(logits, batch.turn_steps[:, 1:])
    log_softmax = torch.log_softmax(logits / temperature, -1)
    chosen = log_softmax.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    entropy = -(log_softmax.exp() * log_softmax.masked_fill(log_softmax.isneginf(), 0.0)).sum(-1)
    own = batch.action_mask[:, 1:]
    return tuple(nn.functional.pad(x.masked_fill(~own, 0.0), (1, 0)) for x in (chosen, entropy))


def weigh(log_probs: Tensor, entropy: Tensor | None = None) -> Tensor:
    """A scalar that depends on every entry differently."""
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    total = (weights * log_probs).sum()
    return total if entropy is None else total + (weights.flip(0) * entropy).sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: nn.Module, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    right, found = gradients(model, expected), gradients(model, actual)
    assert found.keys() == right.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=tolerance, msg=name)


LEGAL = TokenConstraints(vocab_size=V - 4, min_new_tokens=3, stop_token_ids=(2,), suppressed_tokens=(0, 1))


def legal_episodes() -> EpisodeBatch:
    batch = episodes()
    batch.input_ids.clamp_(max=V - 5)
    batch.input_ids[0, 11] = 2
    return batch


@pytest.mark.parametrize("legality", [None, LEGAL], ids=["all", "legal"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_bytes", [1 << 29, 8 * V * 5], ids=["one-chunk", "chunks"])
def test_equal_to_log_softmax_and_gather_with_gradients(
    legality: TokenConstraints | None, temperature: float, max_bytes: int
) -> None:
    model, batch = gpt2(), legal_episodes()
    found = token_log_probs(
        model, batch, temperature=temperature, legality=legality, max_bytes=max_bytes, with_entropy=True
    )
    log_probs, entropy = plain(model, batch, temperature, legality)
    torch.testing.assert_close(found.log_probs, log_probs, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.entropy, entropy, atol=1e-10, rtol=0)
    assert_same_gradients(model, weigh(found.log_probs), weigh(log_probs), 1e-10)
    again = token_log_probs(
        model, batch, temperature=temperature, legality=legality, max_bytes=max_bytes, with_entropy=True
    )
    right = plain(model, batch, temperature, legality)
    assert_same_gradients(model, weigh(*again[:2]), weigh(*right), 1e-10)


@pytest.mark.parametrize("max_bytes", [1 << 29, 4 * V * 5], ids=["one-chunk", "chunks"])
def test_a_head_with_a_hook_gives_the_same_by_the_general_path(max_bytes: int) -> None:
    model, batch = gpt2(), legal_episodes()
    model.lm_head.register_forward_hook(lambda *_: None)
    options = {"temperature": 0.7, "legality": LEGAL, "max_bytes": max_bytes}
    found = token_log_probs(model, batch, with_entropy=True, **options)
    right = plain(model, batch, 0.7, LEGAL)
    torch.testing.assert_close(found.log_probs, right[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(found.entropy, right[1], atol=1e-10, rtol=0)
    assert_same_gradients(model, weigh(*found[:2]), weigh(*right), 1e-10)
    assert token_log_probs(model, batch, **options).entropy is None


@pytest.mark.parametrize(
    ("linear", "dtype"), [(True, torch.float64), (True, torch.float32), (False, torch.float32)]
)
def test_chunks_fill_the_byte_budget_and_only_several_are_computed_again(
    linear: bool, dtype: torch.dtype
) -> None:
    rows: list[int] = []

    class Counted(TokenConstraints):
        def apply(self, logits: Tensor, t: Tensor) -> Tensor:
            rows.append(len(logits))
            return super().apply(logits, t)

    rule = Counted(**{name: getattr(LEGAL, name) for name in LEGAL.__dataclass_fields__})
    model, batch = gpt2(dtype), legal_episodes()
    actions = int(batch.action_mask.sum())
    if not linear:
        model.lm_head.register_forward_hook(lambda *_: None)
    row = (V - 4) * dtype.itemsize if linear else 4 * V
    for budget, chunks in ((actions * row, [actions]), (actions * row - 1, [1, actions - 1])):
        rows.clear()
        found = token_log_probs(model, batch, legality=rule, max_bytes=budget).log_probs
        assert sorted(rows) == chunks
        found.sum().backward()
        assert sorted(rows) == sorted(chunks if len(chunks) == 1 else 2 * chunks)
    rows.clear()
    with torch.no_grad():
        token_log_probs(model, batch, legality=rule, max_bytes=3 * row)
    assert max(rows) == 3 and sum(rows) == actions
    rows.clear()
    with torch.no_grad():
        token_log_probs(model, batch, legality=rule, max_bytes=1)
    assert rows == [1] * actions


@pytest.mark.parametrize("legality", [None, LEGAL], ids=["all", "legal"])
@pytest.mark.parametrize("max_bytes", [1 << 29, 8 * V * 5], ids=["one-chunk", "chunks"])
def test_the_bias_of_a_head_has_its_gradient(legality: TokenConstraints | None, max_bytes: int) -> None:
    torch.manual_seed(0)
    model, batch = PhiForCausalLM(PhiConfig(**SIZES)).double(), legal_episodes()
    with torch.no_grad():
        model.lm_head.bias.normal_(std=1.0)
    found = token_log_probs(model, batch, legality=legality, max_bytes=max_bytes).log_probs
    assert_same_gradients(model, weigh(found), weigh(plain(model, batch, 1.0, legality)[0]), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_linear_path_gives_what_was_asked_for_and_keeps_no_more(dtype: torch.dtype) -> None:
    """Of the size of the logits: softmax minus one-hot is kept, with entropies the log-softmax, too."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=generator).to(dtype).requires_grad_() for n in (6, 9))
    tokens, t = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for with_entropy, count in ((False, 1), (True, 2)):
        kept: list[torch.Size] = []

        def note(tensor: Tensor, kept: list[torch.Size] = kept) -> Tensor:
            kept.append(tensor.shape)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            log_probs, entropy = linear_log_probs(hidden, weight, None, tokens, t, with_entropy=with_entropy)
        assert kept.count(torch.Size((6, 9))) == count
        assert (log_probs.dtype, log_probs.shape) == (wide, (6,))
        assert (None if entropy is None else entropy.dtype) == (wide if with_entropy else None)


def test_a_batch_without_actions_gives_a_head_zero_gradients() -> None:
    weight, bias = torch.randn(9, 4, requires_grad=True), torch.randn(9, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # memory that is not written holds NaN
    try:
        found, _ = linear_log_probs(torch.randn(0, 4), weight, bias, none, none)
        found.sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    for parameter in (weight, bias):
        assert parameter.grad is not None and not parameter.grad.any()


def test_what_passes_no_gradient_on_gets_none_back() -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            return None

    model = gpt2()
    Stop.apply(token_log_probs(model, episodes()).log_probs).sum().backward()
    assert not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_entropy_alone_has_its_gradient() -> None:
    model, batch = gpt2(), episodes()
    found = token_log_probs(model, batch, with_entropy=True).entropy
    assert_same_gradients(model, weigh(found), weigh(plain(model, batch)[1]), 1e-10)


@pytest.mark.parametrize("max_bytes", [1 << 29, 8 * V * 3], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (
            Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0),
            Gemma2ForCausalLM,
        ),
        (CohereConfig(**SIZES, logit_scale=0.3), CohereForCausalLM),
        (PhiConfig(**SIZES), PhiForCausalLM),
        (LlamaConfig(**SIZES), LlamaForCausalLM),
        (BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2), BloomForCausalLM),
        (MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4), MambaForCausalLM),
    ],
    ids=["gemma2-softcap", "cohere-scale", "phi-bias", "llama", "bloom", "mamba"],
)
def test_architectures(config: object, model_class: type[nn.Module], max_bytes: int) -> None:
    torch.manual_seed(0)
    model, batch = model_class(config).double(), episodes()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=1.0)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_(std=1.0)
    found = token_log_probs(model, batch, max_bytes=max_bytes, with_entropy=True)
    right = plain(model, batch)
    # Mamba rounds its logits to float32, Cohere what it normalises.
    tolerance = 1e-5 if isinstance(model, CohereForCausalLM | MambaForCausalLM) else 1e-9
    torch.testing.assert_close(found.log_probs, right[0], atol=tolerance, rtol=0)
    assert_same_gradients(model, weigh(*found[:2]), weigh(*right), 100 * tolerance)


def test_softcapped_and_scaled_heads_are_not_taken_for_linear_ones() -> None:
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8))
    assert not split_model(capped).linear and split_model(capped).output is not None
    assert split_model(capped).trunk is capped.model
    assert split_model(gpt2()).linear


def test_an_unsplittable_model_still_gets_right_numbers() -> None:
    class Headless(GPT2LMHeadModel):
        def get_output_embeddings(self) -> None:
            return None

    torch.manual_seed(0)
    model, batch = Headless(GPT2Config(**GPT2)).double(), episodes()
    assert split_model(model).output is None
    found = token_log_probs(model, batch, max_bytes=8 * V * 3).log_probs
    torch.testing.assert_close(found, plain(model, batch)[0], atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match="does not expose its LM head's input"):
        token_log_probs(model, batch, with_hidden=True)


def test_float32_and_bfloat16_stay_close() -> None:
    model, batch = gpt2(torch.float32), episodes()
    right = plain(gpt2(), batch)[0].float()
    found = token_log_probs(model, batch).log_probs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    low = token_log_probs(model.bfloat16(), batch)
    assert low.log_probs.dtype == torch.float32
    torch.testing.assert_close(low.log_probs, right, atol=0.3, rtol=0.1)
    low.log_probs.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_very_unlikely_tokens_do_not_underflow() -> None:
    model, batch = gpt2(torch.float32), episodes()
    with torch.no_grad():
        model.lm_head.weight.mul_(200.0)
    found = token_log_probs(model, batch).log_probs
    assert found.min() < -200 and torch.isfinite(found).all()
    torch.testing.assert_close(found, plain(model, batch)[0], atol=1e-2, rtol=1e-5)


def test_an_illegal_token_has_probability_zero() -> None:
    model, batch = gpt2(), legal_episodes()
    batch.input_ids[1, 2] = 2
    found = token_log_probs(model, batch, legality=LEGAL).log_probs
    assert found[1, 2] == -torch.inf and torch.isfinite(found[0]).all()


def test_autocast_takes_the_general_path() -> None:
    model, batch = gpt2(torch.float32), episodes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_log_probs(model, batch).log_probs
    torch.testing.assert_close(found, plain(model, batch)[0], atol=0.3, rtol=0.1)


def test_a_frozen_head_or_trunk_gets_no_gradient() -> None:
    model, batch = gpt2(tie_word_embeddings=False), episodes()
    right = gradients(model, weigh(plain(model, batch)[0]))
    model.lm_head.requires_grad_(False)
    frozen_head = gradients(model, weigh(token_log_probs(model, batch).log_probs))
    assert "lm_head.weight" not in frozen_head
    torch.testing.assert_close(frozen_head["transformer.wpe.weight"], right["transformer.wpe.weight"])
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    frozen_trunk = gradients(model, weigh(token_log_probs(model, batch).log_probs))
    assert frozen_trunk.keys() == {"lm_head.weight"}
    torch.testing.assert_close(frozen_trunk["lm_head.weight"], right["lm_head.weight"])


def test_backward_twice_gives_the_same() -> None:
    model, batch = gpt2(), episodes()
    loss = weigh(*token_log_probs(model, batch, with_entropy=True)[:2])
    first = torch.autograd.grad(loss, model.lm_head.weight, retain_graph=True)[0]
    second = torch.autograd.grad(loss, model.lm_head.weight)[0]
    assert torch.equal(first, second)


def test_hidden_states_and_values_sit_where_they_are_said_to() -> None:
    model, batch = gpt2(), episodes()
    right = model.transformer(batch.input_ids, attention_mask=batch.attention_mask.long()).last_hidden_state
    head = nn.Linear(16, 1).double()
    found = token_log_probs(model, batch, with_hidden=True, value_head=lambda x: head(x).squeeze(-1))
    real = batch.attention_mask.unsqueeze(-1)
    torch.testing.assert_close(found.hidden, right * real, atol=1e-10, rtol=0)
    values = nn.functional.pad(head(right).squeeze(-1)[:, :-1], (1, 0)) * batch.action_mask
    torch.testing.assert_close(found.values, values, atol=1e-10, rtol=0)
    found.values.sum().backward()
    assert model.transformer.wte.weight.grad.abs().sum() > 0


def test_padding_and_row_order_change_nothing() -> None:
    model, batch = gpt2(), episodes()
    found = token_log_probs(model, batch).log_probs
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        token_log_probs(model, batch.select(order)).log_probs, found[order], atol=1e-10, rtol=0
    )
    for i in range(len(batch)):
        alone = token_log_probs(model, batch.select([i])).log_probs[0]
        torch.testing.assert_close(alone, found[i, : len(alone)], atol=1e-10, rtol=0)
        assert (found[i, len(alone) :] == 0).all()


def test_same_batch_same_numbers_bit_for_bit() -> None:
    model, batch = gpt2(torch.float32), episodes()
    with torch.no_grad():
        first = token_log_probs(model, batch).log_probs
    assert torch.equal(first, token_log_probs(model, batch).log_probs)


def test_the_logits_of_all_positions_are_never_made() -> None:
    model, batch = gpt2(torch.float32), episodes()
    rows: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda _, args, out: rows.append(out.numel() // V))
    try:
        # A hook on the head sends the scoring through the module, where it can be counted.
        token_log_probs(model, batch)
    finally:
        handle.remove()
    assert max(rows) == int(batch.action_mask.sum()) < batch.input_ids.numel()
    seen: list[int] = []
    before = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        token_log_probs(model, batch)
    finally:
        before.remove()
    assert sum(seen) == int(batch.action_mask.sum())


def test_batches_without_actions() -> None:
    model, batch = gpt2(), episodes()
    batch.action_mask[:] = False
    found = token_log_probs(model, batch, with_entropy=True)
    assert found.log_probs.abs().sum() == 0 and found.log_probs.shape == batch.input_ids.shape
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote holds NaN
    try:
        found.log_probs.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())
    empty = token_log_probs(model, EpisodeBatch.from_ids([], []))
    assert empty.log_probs.shape == (0, 0) and empty.entropy is None and empty.values is None
    empty = token_log_probs(
        model, EpisodeBatch.from_ids([], []), with_entropy=True, value_head=lambda x: x[:, 0]
    )
    assert empty.entropy is not None and empty.values is not None
    assert empty.entropy.shape == empty.values.shape == (0, 0)


def test_bad_arguments() -> None:
    model, batch = gpt2(), episodes()
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        token_log_probs(model, batch, temperature=0)
    with pytest.raises(ValueError, match="max_bytes must be >= 1, got 0"):
        token_log_probs(model, batch, max_bytes=0)
    with pytest.raises(ValueError, match="37 logits, expected at least the tokenizer's vocabulary of 50"):
        token_log_probs(model, batch, legality=TokenConstraints(vocab_size=50))


@pytest.mark.parametrize("packing", [False, True])
def test_no_token_is_forwarded_that_no_action_depends_on(packing: bool) -> None:
    model, batch = gpt2(), episodes()
    token_log_probs(model, batch, packing=packing)  # the first pass looks at the model's structure, too
    needed, sizes = batch.lengths - 1, []
    model.transformer.wte.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
    token_log_probs(model, batch, packing=packing)
    groups = sum(len(rows) * width for rows, width in length_groups(needed, 48))
    assert sum(sizes) == (int(needed.sum()) if packing else groups)


def test_undivided_rows_are_one_group() -> None:
    with single_length_group():
        assert [(rows.tolist(), width) for rows, width in length_groups(torch.tensor([2, 9, 2]), 0)] == [
            ([0, 1, 2], 9)
        ]
        assert [width for _, width in length_groups(torch.tensor([0, 0]), 0)] == [1]
    assert len(list(length_groups(torch.tensor([2, 9, 2]), 0))) == 2
    assert [width for _, width in length_groups(torch.tensor([0, 0]), 0)] == [1]


@pytest.mark.parametrize("overhead", [0, 5, 10_000])
def test_length_groups_cover_every_row_once_at_least_cost(overhead: int) -> None:
    lengths = torch.tensor([7, 1, 30, 2, 2, 29, 6])
    groups = list(length_groups(lengths, overhead))
    assert sorted(torch.cat([rows for rows, _ in groups]).tolist()) == list(range(7))
    assert all(int(lengths[rows].max()) == width for rows, width in groups)
    cost = sum(len(rows) * width + overhead for rows, width in groups)
    assert cost <= 7 * 30 + overhead
    assert len(groups) == {0: 6, 10_000: 1}.get(overhead, len(groups))


@pytest.mark.parametrize(
    ("model", "spared"),
    [
        (gpt2(), {"mlp", "c_proj"}),
        (LlamaForCausalLM(LlamaConfig(**SIZES)).double(), {"mlp", "o_proj"}),
        # Its feed-forward layer takes the residual as well.
        (BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2)).double(), set()),
    ],
    ids=["gpt2", "llama", "bloom"],
)
def test_the_last_blocks_position_wise_layers_run_where_actions_are_emitted(
    model: nn.Module, spared: set[str]
) -> None:
    names = split_model(model).position_wise
    assert {name.rsplit(".", 1)[-1] for name in names} == spared
    assert all(".1." in name for name in names)
    batch = episodes()
    seen: list[int] = []
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out: seen.append(out.shape[:-1].numel())
        )
    sparing = token_log_probs(model, batch).log_probs
    assert seen == [int(batch.action_mask.sum())] * len(names)
    assert not any(module._forward_pre_hooks for module in model.modules())
    right = plain(model, batch)[0]
    torch.testing.assert_close(sparing, right, atol=1e-10, rtol=0)
    assert_same_gradients(model, weigh(sparing), weigh(right), 1e-10)
    if names:
        seen.clear()
        packed = token_log_probs(model, batch, packing=True).log_probs
        assert seen == [int(batch.action_mask.sum())] * len(names)
        torch.testing.assert_close(packed, right, atol=1e-10, rtol=0)


def test_where_the_backward_pass_runs_blocks_again_nothing_is_spared() -> None:
    model, batch = gpt2().train(), episodes()
    split_model(model)
    positions: list[int] = []
    model.transformer.h[-1].mlp.register_forward_hook(
        lambda _, args, out: positions.append(out.shape[:-1].numel())
    )
    wanted = gradients(model, weigh(plain(model, batch)[0]))
    for checkpointing in (False, True, False):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        positions.clear()
        found = gradients(model, weigh(token_log_probs(model, batch).log_probs))
        assert (positions[0] > batch.action_mask.sum()) == checkpointing
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-10, rtol=0, msg=name)


def test_a_layer_that_mixes_positions_is_not_spared() -> None:
    model = gpt2()

    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden + nn.functional.pad(hidden, (0, 0, 1, 0))[..., :-1, :])

    model.transformer.h[1].mlp = Shifted(model.transformer.h[1].mlp)
    assert split_model(model).position_wise == ()
    torch.testing.assert_close(
        token_log_probs(model, episodes()).log_probs, plain(model, episodes())[0], atol=1e-10, rtol=0
    )


def test_acting_and_teacher_forcing_count_the_step_alike_in_every_turn() -> None:
    """Tokens 2 and 3 of a turn may end it, the first two may not, whoever wrote what before the turn."""
    model = gpt2()
    legality = TokenConstraints(vocab_size=V, min_new_tokens=2, stop_token_ids=(2,))
    policy = DecodingPolicy(model, greedy=True)
    policy.legality = legality
    batch = EpisodeBatch.from_ids([[5, 6]], [[7, 8, 9, 10, 11, 12, 13, 14]])
    batch.action_mask[0, 5:7] = False
    forced = token_log_probs(model, batch, legality=legality).log_probs.detach()
    logits = model(batch.input_ids).logits[0].detach()
    for start, columns in ((2, (2, 3, 4)), (7, (7, 8, 9))):
        for column in columns:
            ids = batch.input_ids.clone()
            mask = torch.arange(ids.shape[1]) < column
            obs = {
                "input_ids": ids * mask,
                "attention_mask": mask[None].long(),
                "prompt_length": torch.tensor([start]),
            }
            tokens, known = policy.act(obs)
            legal = torch.log_softmax(legality.apply(logits[column - 1], torch.tensor(column - start)), -1)
            assert int(tokens) == int(legal.argmax())
            assert float(known["log_prob"]) == pytest.approx(float(legal.max()), abs=1e-9)
            assert float(forced[0, column]) == pytest.approx(
                float(legal[batch.input_ids[0, column]]), abs=1e-9
            )
            assert bool(legal[2].isneginf()) == (column - start < 2)
