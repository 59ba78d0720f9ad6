"""The slot-cache decoder against the plain forward, over architectures, ages, refills and releases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from textenv.generation import decoder as decoding
from textenv.generation import self_check
from textenv.generation.decoder import Decoder
from textenv.generation.self_check import verify_decoder
from textenv.modeling.attention_masks import SlotMasks, UnsupportedModelError, attention_windows

V = 37
LENGTH = 40
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3}
SMALL: dict[str, Any] = {"vocab_size": V, "hidden_size": 16, **SPECIAL}
LAYERS = ["sliding_attention", "full_attention"]
CONFIGS: dict[str, Any] = {
    "gpt2": tf.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=V, n_positions=64, **SPECIAL),
    "llama": tf.LlamaConfig(**GROUPED),
    "qwen2": tf.Qwen2Config(**GROUPED),
    "qwen2-window": tf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": tf.Qwen3Config(**GROUPED, head_dim=8),
    "mistral": tf.MistralConfig(**GROUPED, sliding_window=None),
    "mistral-window": tf.MistralConfig(**GROUPED, sliding_window=6),
    "mixtral": tf.MixtralConfig(**GROUPED, num_local_experts=4, sliding_window=None),
    "qwen3-moe": tf.Qwen3MoeConfig(
        **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
    "gpt-neox": tf.GPTNeoXConfig(**SIZES),
    "opt": tf.OPTConfig(
        **SMALL, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64
    ),
    "phi": tf.PhiConfig(**GROUPED),
    "gemma2": tf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=6),
    "gemma3": tf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=6, layer_types=LAYERS),
    "falcon-rope": tf.FalconConfig(
        **SMALL,
        num_hidden_layers=2,
        num_attention_heads=2,
        alibi=False,
        new_decoder_architecture=True,
        num_kv_heads=1,
    ),
    "cohere": tf.CohereConfig(**GROUPED),
    "olmo2": tf.Olmo2Config(**GROUPED),
    "starcoder2": tf.Starcoder2Config(**GROUPED, sliding_window=6),
}
REFUSED: dict[str, Any] = {
    "mamba": tf.MambaConfig(**SMALL, num_hidden_layers=2, state_size=4),
    "bloom": tf.BloomConfig(**SMALL, n_layer=2, n_head=2),
    "gpt-neo": tf.GPTNeoConfig(
        **SMALL,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=6,
        max_position_embeddings=64,
    ),
}


def build(config: Any, attention: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


class Replay:
    """Drives a decoder with known texts, and compares every step with the plain forward."""

    def __init__(self, model: nn.Module, slots: int, seed: int = 0) -> None:
        self.model, self.decoder = model, Decoder(model, slots, LENGTH, verify=False)
        self.generator = torch.Generator().manual_seed(seed)
        self.texts: dict[int, Tensor] = {}
        self.expected: dict[int, Tensor] = {}
        self.cached: dict[int, int] = {}
        self.error = 0.0

    def start(self, counts: dict[int, int]) -> None:
        """Give rows new texts and cache the first ``counts`` tokens of each in one prefill."""
        for row, count in counts.items():
            self.texts[row] = torch.randint(3, V, (LENGTH,), generator=self.generator)
            with torch.no_grad():
                self.expected[row] = self.model(self.texts[row].unsqueeze(0), use_cache=False).logits[0]
            self.cached[row] = count
        tokens = torch.stack([self.texts[row] for row in counts])[:, : max(1, *counts.values())]
        self.decoder.prefill(torch.tensor(list(counts)), tokens, torch.tensor(list(counts.values())))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            rows = torch.tensor(sorted(self.cached))
            tokens = torch.stack([self.texts[row][count] for row, count in sorted(self.cached.items())])
            logits = self.decoder.decode(rows, tokens).logits
            right = torch.stack([self.expected[row][count] for row, count in sorted(self.cached.items())])
            self.error = max(self.error, float((logits - right).abs().max()))
            self.cached = {row: count + 1 for row, count in self.cached.items()}

    def extend(self, counts: dict[int, int]) -> None:
        """Append several tokens at once to some rows."""
        tokens = torch.zeros(len(counts), max(counts.values()) + 1, dtype=torch.int64)
        for i, (row, count) in enumerate(counts.items()):
            start = self.cached[row]
            tokens[i, :count] = self.texts[row][start : start + count]
            self.cached[row] += count
        self.decoder.extend(torch.tensor(list(counts)), tokens, torch.tensor(list(counts.values())))

    def release(self, *rows: int) -> None:
        self.decoder.release(torch.tensor(rows))
        self.cached = {row: count for row, count in self.cached.items() if row not in rows}


def rollout(model: nn.Module) -> Replay:
    """Rows of different age, refills, releases with compaction, rows that come back; windows are crossed."""
    replay = Replay(model, slots=5)
    replay.start({0: 3, 1: 11, 2: 0, 3: 7, 4: 1})
    replay.step(4)
    replay.start({1: 2, 3: 20})
    replay.step(2)
    replay.release(0, 3)
    replay.step(3)
    replay.start({3: 9})
    replay.step()
    replay.release(1)
    replay.start({0: 4, 2: 0})
    replay.step(9)
    replay.extend({2: 8, 0: 1, 4: 0})
    replay.step(2)
    replay.release(3)
    replay.extend({4: 5})
    replay.step()
    return replay


@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_equals_the_plain_forward(name: str) -> None:
    model = build(CONFIGS[name])
    verify_decoder(model, LENGTH, Decoder)
    assert rollout(model).error < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2-window", "mistral-window", "gemma3"])
def test_eager_attention_too(name: str) -> None:
    model = build(CONFIGS[name], "eager")
    verify_decoder(model, LENGTH, Decoder)
    assert rollout(model).error < 1e-4


# Experts have no float64 kernel on a CPU, and Gemma 2 computes a part in float32.
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("mixtral", "qwen3-moe", "gemma2")])
def test_float64_is_exact(name: str) -> None:
    assert rollout(build(CONFIGS[name]).double()).error < 1e-10


def test_bfloat16_decodes() -> None:
    model = build(CONFIGS["llama"]).bfloat16()
    verify_decoder(model, LENGTH, Decoder)
    replay = rollout(model)
    scale = float(next(iter(replay.expected.values())).float().std())
    assert replay.error < 0.3 * scale


@pytest.mark.parametrize("name", REFUSED)
def test_models_with_another_kind_of_state_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        Decoder(build(REFUSED[name]), 2, LENGTH)


def test_a_wrong_mask_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The self-check compares numbers: a window that is off by one must not pass it.
    for name in ("mistral-window", "gemma3"):
        model = build(CONFIGS[name])
        windows = {kind: w and w + 1 for kind, w in attention_windows(model.config).items()}
        monkeypatch.setattr(decoding, "attention_windows", lambda _, windows=windows: windows)
        with pytest.raises(UnsupportedModelError, match="differ from the plain forward"):
            Decoder(model, 2, LENGTH)


def test_hidden_is_the_heads_input_and_logits_have_their_soft_cap() -> None:
    config = tf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=6, final_logit_softcapping=1.5)
    model = build(config)
    decoder = Decoder(model, 1, LENGTH)
    text = torch.arange(3, 13)
    decoder.prefill(torch.tensor([0]), text.unsqueeze(0), torch.tensor([9]))
    logits, hidden = decoder.decode(torch.tensor([0]), text[9:])
    with torch.no_grad():
        right = model.model(text.unsqueeze(0)).last_hidden_state[0, -1]
        capped = 1.5 * torch.tanh(model.lm_head(right) / 1.5)
    torch.testing.assert_close(hidden[0], right, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[0], capped, atol=1e-4, rtol=0)


def test_only_live_rows_and_the_longest_columns_are_computed() -> None:
    model = build(CONFIGS["gpt2"])
    shapes: list[tuple[int, ...]] = []
    decoder = Decoder(model, 8, LENGTH)
    decoder.prefill(torch.arange(8), torch.full((8, 20), 5), torch.tensor([2, 20, 2, 2, 2, 20, 2, 2]))

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        shapes.append(tuple(kwargs["attention_mask"].shape))

    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    decoder.decode(decoder.rows, torch.full((8,), 5))
    decoder.release(torch.tensor([1, 5, 0]))
    decoder.decode(decoder.rows, torch.full((5,), 5))
    handle.remove()
    assert shapes == [(8, 1, 1, 32), (5, 1, 1, 16)]
    assert sorted(decoder.rows.tolist()) == [2, 3, 4, 6, 7] and decoder.live.sum() == 5


def test_buffers_are_as_wide_as_the_longest_row_needs() -> None:
    replay = Replay(build(CONFIGS["gpt2"]), slots=3)
    columns = lambda: replay.decoder._cache.columns  # noqa: E731
    replay.start({0: 3, 1: 14})
    assert columns() == 16
    replay.step(3)
    assert columns() == 32
    replay.start({2: 38})
    assert columns() == LENGTH
    replay.step(2)
    replay.release(2)
    replay.step(1)
    assert columns() == LENGTH
    replay.release(1)
    replay.step(4)
    assert columns() == 16 and replay.error < 1e-4


# The head of the one is all that follows its trunk; the logits of the other are changed after it.
@pytest.mark.parametrize(("name", "least"), [("llama", []), ("gemma2", [1, 1, 1])])
def test_prefill_skips_the_head_and_splits_large_batches(
    monkeypatch: pytest.MonkeyPatch, name: str, least: list[int]
) -> None:
    monkeypatch.setattr(decoding, "_PREFILL_TOKENS", 12)
    model = build(CONFIGS[name])
    positions: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda _, args, out: positions.append(out.numel() // V))
    replay = Replay(model, slots=5)
    positions.clear()
    replay.start({0: 6, 1: 3, 2: 12, 3: 0, 4: 3})
    assert [p for p in positions if p != LENGTH] == least
    handle.remove()
    replay.step(3)
    assert replay.error < 1e-4


def test_texts_that_come_next_are_computed_ahead_and_equal_ones_once() -> None:
    model = build(CONFIGS["llama"])
    texts = torch.randint(3, V, (6, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(texts, use_cache=False).logits
    decoder = Decoder(model, 4, LENGTH)
    passes: list[tuple[int, ...]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    counts = torch.tensor([5, 5, 7, 3, 8, 1])
    queue = list(range(4, 6))

    def upcoming(count: int) -> tuple[Tensor, Tensor]:
        assert count >= 2
        return texts[queue], counts[queue]

    def prefill(rows: list[int], wanted: list[int]) -> None:
        width = int(counts[wanted].max())
        decoder.prefill(torch.tensor(rows), texts[wanted][:, :width], counts[wanted], upcoming=upcoming)

    def check(wanted: list[int]) -> None:
        columns = counts[wanted]
        logits = decoder.decode(torch.arange(len(wanted)), texts[wanted, columns]).logits
        torch.testing.assert_close(logits, expected[wanted, columns], atol=1e-4, rtol=0)

    # Two samples of text 0, one of text 2, and the two that come next: four texts in one pass.
    prefill([0, 1, 2], [0, 0, 2])
    assert passes == [(4, 8)]
    check([0, 0, 2])
    passes.clear()
    prefill([0, 2], [5, 4])
    prefill([1], [2])
    assert passes == []
    check([5, 2, 4])
    decoder.invalidate()
    passes.clear()
    prefill([0], [4])
    assert passes == [(2, 8)]
    queue.clear()
    prefill([1], [3])
    assert passes == [(2, 8), (1, 3)]
    check([4, 3])


def test_training_flags_come_back_one_by_one() -> None:
    model = build(CONFIGS["gpt2"]).train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    decoder = Decoder(model, 1, LENGTH)
    decoder.prefill(torch.tensor([0]), torch.tensor([[3, 4]]), torch.tensor([2]))
    first = decoder.decode(torch.tensor([0]), torch.tensor([5])).logits.clone()
    assert [module.training for module in model.modules()] == before
    decoder.prefill(torch.tensor([0]), torch.tensor([[3, 4]]), torch.tensor([2]))
    # Dropout is 0.1 in this config: only eval mode gives the same logits twice.
    assert torch.equal(first, decoder.decode(torch.tensor([0]), torch.tensor([5])).logits)


def test_the_models_hooks_are_left_as_they_were() -> None:
    model = build(CONFIGS["gpt2"])
    decoder = Decoder(model, 1, LENGTH)
    decoder.prefill(torch.tensor([0]), torch.tensor([[3]]), torch.tensor([1]))
    decoder.decode(torch.tensor([0]), torch.tensor([5]))
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_hooks_on_the_model_are_called_whenever_they_came(name: str) -> None:
    replay = Replay(build(CONFIGS[name]), slots=2)
    model, calls = replay.model, []
    replay.start({0: 3, 1: 5})
    replay.step(2)
    before = model.register_forward_pre_hook(lambda _, args: calls.append("before"))
    after = model.register_forward_hook(lambda _, args, out: calls.append(tuple(out.logits.shape)))
    replay.step(2)
    assert calls == ["before", (2, 1, V)] * 2
    before.remove()
    after.remove()
    replay.step(2)
    assert len(calls) == 4
    assert replay.error < 1e-4


def test_the_self_check_runs_once_per_model_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    check = self_check._check

    def counted(model: nn.Module, length: int, make: Any) -> str | None:
        calls.append(length)
        return check(model, length, make)

    monkeypatch.setattr(self_check, "_check", counted)
    model = build(CONFIGS["mistral-window"])
    for slots, length in ((2, 40), (3, 50), (4, 40)):
        Decoder(model, slots, length)
    assert calls == [12]
    Decoder(model.double(), 2, 40)
    assert calls == [12, 12]
    refused = build(REFUSED["gpt-neo"])
    for _ in range(2):
        with pytest.raises(UnsupportedModelError):
            Decoder(refused, 2, 40)
    assert len(calls) == 3


def test_the_self_check_reaches_beyond_windows_that_bite() -> None:
    config = tf.MistralConfig(**GROUPED, sliding_window=30)
    assert self_check._check_length(config, 40) == 34
    assert self_check._check_length(config, 30) == 12


def test_long_local_windows_are_noticed_where_they_bite() -> None:
    kind = {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}
    model = build(tf.GPTNeoConfig(**SMALL, num_layers=2, num_heads=2, window_size=30, **kind))
    Decoder(model, 2, 30)
    with pytest.raises(UnsupportedModelError):
        Decoder(model, 2, 40)


def test_invalidate_forgets_every_row() -> None:
    model = build(CONFIGS["gpt2"])
    replay = Replay(model, slots=2)
    replay.start({0: 5, 1: 3})
    replay.step(2)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    replay.decoder.invalidate()
    assert not replay.decoder.live.any()
    replay.cached = {}
    replay.start({1: 4, 0: 2})
    replay.step(3)
    assert replay.error < 1e-4


def test_bad_arguments() -> None:
    model = build(CONFIGS["gpt2"])
    decoder = Decoder(model, 2, 6)
    rows, tokens = torch.tensor([0, 1]), torch.full((2, 6), 5)
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 2\), got \[0, 2\]"):
        decoder.prefill(torch.tensor([0, 2]), tokens, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"rows must be distinct, got \[1, 1\]"):
        decoder.prefill(torch.tensor([1, 1]), tokens, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"lengths must lie in \[0, 5\]"):
        decoder.prefill(rows, tokens, torch.tensor([1, 6]))
    decoder.prefill(rows, tokens, torch.tensor([5, 1]))
    with pytest.raises(ValueError, match=r"rows must be the live rows \[0, 1\], got \[0\]"):
        decoder.decode(torch.tensor([0]), torch.tensor([5]))
    decoder.decode(rows, torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="already has max_length=6 tokens"):
        decoder.decode(rows, torch.tensor([5, 5]))
    for arguments in ((0, 6), (2, 0)):
        with pytest.raises(ValueError, match="must be >= 1, got 0"):
            Decoder(model, *arguments)
    with pytest.raises(ValueError, match="cuda_graphs needs a model on CUDA"):
        Decoder(model, 2, 6, cuda_graphs=True)
    with pytest.raises(UnsupportedModelError, match="no transformers config"):
        Decoder(nn.Linear(2, 2), 2, 6)


def test_masks_are_chosen_from_the_config() -> None:
    assert attention_windows(CONFIGS["gpt2"]) == {"full_attention": None}
    assert attention_windows(CONFIGS["gemma3"]) == {"full_attention": None, "sliding_attention": 6}
    assert attention_windows(tf.Qwen2Config(**GROUPED)) == {"full_attention": None}
    with pytest.raises(UnsupportedModelError, match="chunked_attention"):
        attention_windows(tf.Llama4TextConfig(num_hidden_layers=4, vocab_size=V, pad_token_id=0))


def test_masks_follow_the_tokens() -> None:
    masks = SlotMasks({"sliding_attention": 3}, 2, 6, torch.float32, torch.device("cpu"))
    slots = torch.arange(2)

    def visible() -> list[list[int]]:
        view = masks.view(2, 6)
        return [row[0, 0].eq(0).nonzero().squeeze(-1).tolist() for row in view]

    masks.restart(slots, torch.tensor([4, 0]))
    assert visible() == [[1, 2, 3], []]
    masks.advance(slots, torch.tensor([4, 0]))
    assert visible() == [[2, 3, 4], [0]]
    masks.advance(slots, torch.tensor([5, 1]))
    assert visible() == [[3, 4, 5], [0, 1]]


@pytest.mark.parametrize("name", ["gpt2", "mistral-window", "gemma3"])
def test_a_step_can_be_repeated_and_padded_as_cuda_graphs_do(name: str) -> None:
    # Warm-up repeats a step, and buckets compute dead slots and columns: neither may change what is live.
    model = build(CONFIGS[name])
    replay = Replay(model, slots=6)
    replay.decoder._elastic = False
    replay.decoder._cache.resize(LENGTH, 0)
    compute = replay.decoder.compute

    def padded(tokens: Tensor, live: int, width: int) -> Any:
        more = torch.cat([tokens, torch.full((6 - live,), 9)])
        for _ in range(2):
            compute(more, 6, LENGTH)
        return type(output := compute(more, 6, LENGTH))(*(value[:live] for value in output))

    replay.decoder.compute = padded
    replay.start({0: 3, 1: 11, 2: 0, 3: 7})
    replay.step(3)
    replay.release(1, 0)
    replay.step(2)
    replay.start({1: 9, 5: 0})
    replay.step(4)
    replay.release(2)
    replay.start({4: 1, 0: 0})
    replay.step(9)
    assert replay.error < 1e-4


def test_attention_without_masks_of_its_own_is_refused_with_the_remedy() -> None:
    model = build(CONFIGS["llama"], "sdpa")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="load the model with attn_implementation='sdpa'"):
        Decoder(model, 2, LENGTH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral-window", "gemma3"])
def test_cuda_graphs_equal_the_plain_forward(name: str) -> None:
    model = build(CONFIGS[name]).cuda()
    decoder = Decoder(model, 5, LENGTH, cuda_graphs=True)
    texts = torch.randint(3, V, (5, LENGTH), device="cuda")
    with torch.no_grad():
        expected = model(texts, use_cache=False).logits
    counts = torch.tensor([3, 11, 0, 7, 1])
    decoder.prefill(torch.arange(5), texts, counts)
    for step in range(20):
        columns = counts.cuda() + step
        index = torch.arange(5, device="cuda")
        logits = decoder.decode(decoder.rows, texts[index, columns]).logits
        torch.testing.assert_close(logits, expected[index, columns], atol=1e-3, rtol=0)
