"""The policy: acts with the cache equal uncached ones; weights, inactive rows, token constraints, keys."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from textenv.envs.token_constraints import TokenConstraints
from textenv.generation import decoder as decoding
from textenv.generation import row_decoder
from textenv.generation.policy import DecodingPolicy
from textenv.utils.hashing import hash_key

V, N, L = 37, 5, 24
SIZES: dict[str, Any] = {"vocab_size": V, "n_positions": 32, "initializer_range": 0.3}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=2, n_embd=16, n_head=2, **{**SIZES, **changes}))


def environment(rows: int = N, length: int = L, **rule: Any) -> Any:
    return SimpleNamespace(legality=TokenConstraints(vocab_size=V, **rule), num_envs=rows, max_length=length)


class Rows:
    """A stand-in for the environment's rows: random prompts, refilled when a random length is reached."""

    def __init__(self, rows: int = N, episodes: int = 12, seed: int = 0, shortest: int = 1) -> None:
        self.generator = np.random.default_rng(seed)
        self.shortest = shortest
        self.left = episodes
        self.ids = torch.zeros(rows, L, dtype=torch.int64)
        self.lengths = torch.ones(rows, dtype=torch.int64)
        self.prompts = torch.ones(rows, dtype=torch.int64)
        self.ends = torch.zeros(rows, dtype=torch.int64)
        self.active = torch.ones(rows, dtype=torch.bool)
        self.episode_ids = torch.zeros(rows, dtype=torch.int64)
        for row in range(rows):
            self.deal(row)

    def deal(self, row: int) -> None:
        if self.left == 0:
            self.active[row] = False
            return
        self.left -= 1
        size = int(self.generator.integers(self.shortest, 9))
        self.ids[row] = 0
        self.ids[row, :size] = torch.from_numpy(self.generator.integers(3, V, size))
        self.lengths[row] = self.prompts[row] = size
        self.ends[row] = size + int(self.generator.integers(1, L - size))
        self.episode_ids[row] = self.left

    def observe(self) -> dict[str, Tensor]:
        mask = (torch.arange(L) < self.lengths.unsqueeze(-1)).to(torch.int8)
        return {"input_ids": self.ids.clone(), "attention_mask": mask, "prompt_length": self.prompts.clone()}

    def key(self) -> Tensor:
        return hash_key(self.episode_ids, self.lengths - self.prompts)

    def step(self, actions: Tensor) -> None:
        for row in self.active.nonzero().squeeze(-1).tolist():
            self.ids[row, self.lengths[row]] = actions[row]
            self.lengths[row] += 1
            if self.lengths[row] >= self.ends[row]:
                self.deal(row)


def agree(model: nn.Module, rows: Rows, tolerance: float = 1e-4, **options: Any) -> int:
    """Play all rows, comparing the cached policy with the uncached one in every step; returns the steps."""
    quick, slow = (DecodingPolicy(model, cached=cached, **options) for cached in (True, False))
    for policy in (quick, slow):
        policy.attach(environment(len(rows.ids)))
    steps = 0
    while rows.active.any():
        arguments = (rows.observe(), rows.key())
        (actions, info), (right, right_info) = (p.act(*arguments, active=rows.active) for p in (quick, slow))
        assert torch.equal(actions, right)
        for name in right_info:
            torch.testing.assert_close(info[name], right_info[name], atol=tolerance, rtol=0)
        assert (actions[~rows.active] == 0).all() and (info["log_prob"][~rows.active] == 0).all()
        rows.step(actions)
        steps += 1
    return steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cached_policy_equals_the_uncached_one(dtype: torch.dtype) -> None:
    head = nn.Linear(16, 1).to(dtype)
    model = gpt2().to(dtype).train()
    steps = agree(model, Rows(), 1e-4 if dtype == torch.float32 else 1e-10, value_head=head)
    assert steps > 20 and model.training and model.transformer.h[0].training


@pytest.mark.parametrize(
    "options", [{"top_k": 3, "temperature": 0.7}, {"top_p": 0.6}, {"greedy": True}], ids=str
)
def test_with_filters(options: dict[str, Any]) -> None:
    agree(gpt2(), Rows(seed=1), **options)


@pytest.mark.parametrize("kind", ["mamba", "bloom", "gpt-neo"])
def test_refused_models_warn_once_and_are_right(kind: str) -> None:
    shared = {"vocab_size": V, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    local = {"attention_types": [[["global", "local"], 1]], "window_size": 6, "max_position_embeddings": 64}
    config = {
        "mamba": lambda: tf.MambaConfig(**shared, num_hidden_layers=2, state_size=4),
        "bloom": lambda: tf.BloomConfig(**shared, n_layer=2, n_head=2),
        "gpt-neo": lambda: tf.GPTNeoConfig(**shared, num_layers=2, num_heads=2, **local),
    }[kind]()
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    policy, rows = DecodingPolicy(model), Rows(episodes=7, seed=2)
    with pytest.warns(UserWarning, match="recomputes its whole episode") as warned:
        policy.attach(environment())
        for _ in range(6):
            obs, key = rows.observe(), rows.key()
            actions, info = policy.act(obs, key)
            mask = obs["attention_mask"].long()
            with torch.no_grad():
                logits = model(obs["input_ids"], attention_mask=mask).logits
            last = logits[torch.arange(N), rows.lengths - 1]
            right = torch.log_softmax(last, -1)[torch.arange(N), actions]
            torch.testing.assert_close(info["log_prob"], right, atol=1e-5, rtol=0)
            rows.step(actions)
    assert len([w for w in warned if "recomputes" in str(w.message)]) == 1


def test_same_key_same_token_whatever_the_batch() -> None:
    model, rows = gpt2(), Rows()
    policy = DecodingPolicy(model)
    obs, key = rows.observe(), rows.key()
    together, _ = policy.act(obs, key)
    for row in range(N):
        alone = {name: value[row : row + 1] for name, value in obs.items()}
        assert DecodingPolicy(model).act(alone, key[row : row + 1])[0].item() == together[row]
    assert torch.equal(policy.act(obs, key)[0], together)
    some = torch.tensor([False, True, True, False, True])
    assert torch.equal(policy.act(obs, key, active=some)[0], together * some)


def test_without_a_key_draws_vary() -> None:
    policy, obs = DecodingPolicy(gpt2()), Rows().observe()
    assert len({tuple(policy.act(obs)[0].tolist()) for _ in range(10)}) > 1


def forwards(model: nn.Module) -> list[tuple[int, int]]:
    """Shapes (rows, tokens) of the model's forward passes from now on."""
    shapes: list[tuple[int, int]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_only_new_rows_are_prefilled_and_parked_ones_cost_nothing() -> None:
    model, rows = gpt2(), Rows(shortest=3)
    policy = DecodingPolicy(model)
    policy.attach(environment())
    shapes = forwards(model)

    def act() -> list[tuple[int, int]]:
        shapes.clear()
        rows.step(policy.act(rows.observe(), rows.key(), active=rows.active)[0])
        return list(shapes)

    rows.ends[:] = L
    assert act() == [(N, int(rows.prompts.max()) - 1), (N, 1)]
    assert act() == [(N, 1)]
    rows.deal(1)
    rows.deal(3)
    assert act() == [(2, int(rows.prompts[[1, 3]].max()) - 1), (N, 1)]
    rows.active[0] = False
    assert act() == [(N - 1, 1)]
    rows.active[:] = False
    assert act() == []
    rows.active[4] = True
    assert act() == [(1, int(rows.lengths[4]) - 2), (1, 1)]


def test_prompts_of_the_next_episodes_are_prefilled_ahead() -> None:
    model, rows = gpt2(), Rows(episodes=2 * N, shortest=3)
    policy, slow = DecodingPolicy(model), DecodingPolicy(model, cached=False)
    waiting = torch.randint(3, V, (3, 6))
    env = environment()
    env.upcoming_prompts = lambda count: (waiting[:count], torch.tensor([6, 5, 1])[:count])
    policy.attach(env)
    policy.act(rows.observe(), rows.key())
    rows.ids[:3, :6], rows.ids[:3, 6:] = waiting, 0
    rows.ids[1, 5] = rows.ids[2, 1:] = 0
    rows.lengths[:3] = rows.prompts[:3] = torch.tensor([6, 5, 1])
    rows.active[3:] = False
    expected = slow.act(rows.observe(), rows.key(), active=rows.active)
    shapes = forwards(model)
    found = policy.act(rows.observe(), rows.key(), active=rows.active)
    assert shapes == [(3, 1)] and torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1]["log_prob"], expected[1]["log_prob"], atol=1e-4, rtol=0)


def test_an_observation_that_is_not_a_continuation_is_prefilled_again() -> None:
    model, rows = gpt2(), Rows(shortest=4)
    policy, slow = DecodingPolicy(model), DecodingPolicy(model, cached=False)
    policy.act(rows.observe(), rows.key())
    rows.step(torch.full((N,), 5))
    # Somebody edits the middle of one text, appends two tokens to another, and goes back a step in a third.
    rows.ids[0, 1] = 9 if rows.ids[0, 1] != 9 else 10
    rows.ids[1, rows.lengths[1]] = 7
    rows.lengths[1] += 1
    rows.lengths[2] -= 1
    for _ in range(2):
        found, right = policy.act(rows.observe(), rows.key()), slow.act(rows.observe(), rows.key())
        assert torch.equal(found[0], right[0])
        torch.testing.assert_close(found[1]["log_prob"], right[1]["log_prob"], atol=1e-4, rtol=0)


def optimizer_step(model: nn.Module, **options: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
    model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("how", ["optimizer", "fused", "load_state_dict", "in-place", "data and invalidate"])
def test_changed_weights_void_the_memo(how: str) -> None:
    model, rows = gpt2(), Rows(shortest=3)
    policy, slow = DecodingPolicy(model), DecodingPolicy(model, cached=False)
    policy.attach(environment())
    rows.step(policy.act(rows.observe(), rows.key())[0])
    version = policy.weights_version
    before = policy.act(rows.observe(), rows.key())[1]["log_prob"]
    if how == "load_state_dict":
        model.load_state_dict(copy.deepcopy(gpt2(initializer_range=0.5)).state_dict())
    elif how == "in-place":
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight.mul_(2.0)
    elif how == "data and invalidate":
        model.transformer.h[0].mlp.c_fc.weight.data.mul_(2.0)
        policy.invalidate()
    else:
        optimizer_step(model, fused=how == "fused")
    found = policy.act(rows.observe(), rows.key())[1]["log_prob"]
    right = slow.act(rows.observe(), rows.key())[1]["log_prob"]
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found, right, atol=1e-4, rtol=0)
    assert policy.weights_version > version or how == "in-place"
    assert policy.sampling()["weights_version"] == policy.weights_version


def test_a_failed_step_leaves_no_half_written_memo() -> None:
    model, rows = gpt2(), Rows()
    fail = []

    def processor(logits: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
        return logits

    policy, slow = DecodingPolicy(model, logits_processor=processor), DecodingPolicy(model, cached=False)
    policy.act(rows.observe(), rows.key())
    rows.step(torch.full((N,), 5))

    def hook(*_: Any) -> None:
        if fail:
            raise KeyboardInterrupt

    model.transformer.h[1].register_forward_pre_hook(hook)
    fail.append(1)
    with pytest.raises(KeyboardInterrupt):
        policy.act(rows.observe(), rows.key())
    fail.clear()
    found, right = policy.act(rows.observe(), rows.key()), slow.act(rows.observe(), rows.key())
    torch.testing.assert_close(found[1]["log_prob"], right[1]["log_prob"], atol=1e-4, rtol=0)


def test_legality_and_processor_shape_the_draw() -> None:
    model, rows = gpt2(), Rows()
    env = environment(min_new_tokens=2, stop_token_ids=(2,), suppressed_tokens=tuple(range(4, V)))
    seen: list[tuple[tuple[int, ...], list[int]]] = []

    def no_three(logits: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
        seen.append((tuple(hidden.shape), t.tolist()))
        assert logits[:, 4:].isneginf().all()
        return logits.index_fill(1, torch.tensor([3]), -torch.inf)

    policy = DecodingPolicy(model, logits_processor=no_three)
    policy.attach(env)
    rows.ends[:] = L
    drawn = []
    for _ in range(6):
        actions, info = policy.act(rows.observe(), rows.key())
        assert torch.isfinite(info["log_prob"]).all()
        drawn.append(set(actions.tolist()))
        rows.step(actions)
    assert drawn[0] | drawn[1] <= {0, 1} and set().union(*drawn) <= {0, 1, 2}
    assert seen[0] == ((N, 16), [0] * N) and seen[3][1] == [3] * N


def test_the_step_needs_the_prompts_length() -> None:
    policy, obs = DecodingPolicy(gpt2()), Rows().observe()
    policy.attach(environment(min_new_tokens=2, stop_token_ids=(2,)))
    del obs["prompt_length"]
    with pytest.raises(ValueError, match="obs must have prompt_length"):
        policy.act(obs)


def test_numpy_and_single_observations() -> None:
    rows, model = Rows(), gpt2()
    policy = DecodingPolicy(model, value_head=lambda hidden: hidden.sum(-1))
    obs, key = rows.observe(), rows.key()
    actions, info = policy.act(obs, key)
    as_numpy = {name: value.numpy() for name, value in obs.items()}
    found, found_info = policy.act(as_numpy, key.numpy(), active=np.ones(N, dtype=bool))
    assert isinstance(found, np.ndarray) and found.tolist() == actions.tolist()
    np.testing.assert_allclose(found_info["value"], info["value"].numpy(), atol=1e-4)
    one, one_info = policy.act({name: value[2] for name, value in as_numpy.items()}, key[2].numpy())
    assert one.shape == () and int(one) == actions[2] and one_info["log_prob"].shape == ()


def test_a_vocabulary_smaller_than_the_tokenizers_is_an_error() -> None:
    policy = DecodingPolicy(gpt2())
    env = environment()
    env.legality = TokenConstraints(vocab_size=50)
    with pytest.raises(ValueError, match="37 logits, expected at least the tokenizer's vocabulary of 50"):
        policy.attach(env)
    larger = environment()
    larger.legality = TokenConstraints(vocab_size=20)
    policy.attach(larger)
    assert policy.act(Rows().observe(), torch.arange(N))[0].max() < 20


def test_too_few_positions_are_an_error() -> None:
    with pytest.raises(
        ValueError, match="the model has 32 positions, expected at least the max_length of 40"
    ):
        DecodingPolicy(gpt2()).attach(environment(length=40))


def test_bad_arguments() -> None:
    for wrong in ({"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DecodingPolicy(gpt2(), **wrong)
    obs = Rows().observe()
    obs["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="must hold at least one token"):
        DecodingPolicy(gpt2()).act(obs)


def test_attaching_again_keeps_the_decoder_and_free_drops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    original = decoding.Decoder
    monkeypatch.setattr(row_decoder, "Decoder", lambda *args, **kw: built.append(1) or original(*args, **kw))
    policy, rows = DecodingPolicy(gpt2()), Rows()
    for _ in range(3):
        policy.attach(environment())
    policy.act(rows.observe())
    assert len(built) == 1
    policy.free()
    policy.act(rows.observe())
    assert len(built) == 2


def test_no_warning_where_the_cache_works() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the observation does not come from an environment of this process")
        agree(gpt2(), Rows(episodes=5))


def test_a_copied_model_is_independent() -> None:
    model = gpt2()
    policy = DecodingPolicy(model)
    rows = Rows()
    policy.act(rows.observe(), rows.key())
    twin = copy.deepcopy(model)
    version = policy.weights_version
    with torch.no_grad():
        twin.transformer.h[0].mlp.c_fc.weight.mul_(2.0)
    shapes = forwards(model)
    policy.act(rows.observe(), rows.key())
    assert policy.weights_version == version and shapes
