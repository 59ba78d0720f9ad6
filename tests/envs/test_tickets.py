"""Episode ids: an episode depends on seed and episode_id only, not on row, time or other rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers.env_helpers import EOS, PROMPTS, TOKENIZER, V, by_key, vector_env
from textenv.envs.scheduler import EpisodeQueue, EpisodeScheduler, noise_base, noise_keys, prompt_index
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.prompts.prompt_set import PromptSet
from textenv.rollout import collect
from textenv.utils.permutation import permute

P = len(PROMPTS)


def rollout(num_envs: int, episodes: int, **kwargs: Any) -> dict[int, list[int]]:
    """Ticket -> text, of a policy that is a function of the noise key."""
    reset = {"seed": kwargs.pop("seed", 3), **kwargs.pop("reset", {})}
    envs = kwargs.pop("envs", None) or vector_env(num_envs, **kwargs)
    return texts(collect(envs, by_key, episodes, **reset))


def texts(batch: EpisodeBatch) -> dict[int, list[int]]:
    lengths = batch.lengths.tolist()
    return {
        int(episode_id): row[:n]
        for episode_id, row, n in zip(batch.episode_id, batch.input_ids.tolist(), lengths, strict=True)
    }


def tiny_model(dtype: torch.dtype, seed: int = 0, positions: int = 40) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=V,
        n_positions=positions,
        n_layer=2,
        n_embd=16,
        n_head=2,
        bos_token_id=EOS,
        eos_token_id=EOS,
        initializer_range=0.5,
    )
    return GPT2LMHeadModel(config).eval().to(dtype)


class TestPermutation:
    @given(size=st.integers(1, 400), key=st.integers(0, 2**64 - 1))
    def test_is_one(self, size: int, key: int) -> None:
        order = permute(np.arange(size), size, np.full(size, key, dtype=np.uint64))
        assert sorted(order.tolist()) == list(range(size))

    def test_is_uniform(self) -> None:
        """Every one of the 24 orders of 4 items, about equally often."""
        keys = np.repeat(np.random.default_rng(0).integers(0, 2**63, 6000).astype(np.uint64), 4)
        orders = permute(np.tile(np.arange(4), 6000), 4, keys).reshape(-1, 4)
        counts = Counter(map(tuple, orders.tolist()))
        assert len(counts) == 24
        assert sum((count - 250) ** 2 / 250 for count in counts.values()) < 58  # 23 degrees of freedom

    @pytest.mark.parametrize("size", [257, 1000])
    def test_two_items_fall_anywhere(self, size: int) -> None:
        """Large ranges: where two neighbours go, in 8 x 8 cells, is uniform but for one cell on another."""
        keys = np.random.default_rng(1).integers(0, 2**63, 20_000).astype(np.uint64)
        first, second = (permute(np.full(20_000, i), size, keys) * 8 // size for i in (6, 7))
        cells = np.bincount(first * 8 + second, minlength=64)
        share = np.bincount(np.arange(size) * 8 // size)
        expected = 20_000 * (np.outer(share, share) - np.diag(share)).reshape(-1) / (size * (size - 1))
        assert ((cells - expected) ** 2 / expected).sum() < 118  # 63 degrees of freedom, once in 30,000


class TestPrompts:
    @pytest.mark.parametrize("samples", [1, 3])
    def test_every_epoch_deals_every_prompt_once(self, samples: int) -> None:
        ids = np.arange(4 * P * samples)
        index = prompt_index(np.full(len(ids), 9), ids, P, samples_per_prompt=samples)
        groups = index.reshape(-1, samples)
        assert (groups == groups[:, :1]).all()
        epochs = groups[:, 0].reshape(4, P)
        assert (np.sort(epochs) == np.arange(P)).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4

    def test_in_order_without_shuffling(self) -> None:
        index = prompt_index(np.zeros(10, dtype=np.int64), np.arange(10), 4, shuffle=False)
        assert index.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]

    def test_one_prompt(self) -> None:
        assert not prompt_index(np.zeros(5, dtype=np.int64), np.arange(5), 1).any()


class TestNoise:
    def test_keys_are_unique(self) -> None:
        seeds, ids = (grid.reshape(-1) for grid in np.meshgrid(np.arange(30), np.arange(100)))
        keys = noise_keys(noise_base(seeds, ids), 50)
        assert len(np.unique(keys)) == keys.size == 150_000

    def test_bits_are_fair(self) -> None:
        keys = noise_keys(noise_base(np.zeros(1000, dtype=np.int64), np.arange(1000)), 20).view(np.uint64)
        shares = [((keys >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)]
        assert max(abs(share - 0.5) for share in shares) < 0.016  # 4.5 standard deviations

    def test_keys_in_info_are_those(self) -> None:
        envs = vector_env(2)
        _, info = envs.reset(seed=6)
        expected = noise_keys(noise_base(np.array([6, 7]), np.zeros(2, dtype=np.int64)), 3)
        for t in range(3):
            assert info["key"].tolist() == expected[:, t].tolist()
            *_, info = envs.step([1, 1])


class TestEpisodeScheduler:
    @pytest.mark.parametrize("samples", [1, 3])
    def test_blocks_ahead_change_nothing(self, samples: int) -> None:
        """Prompts and noise by block equal those looked up one by one, in streams and in queues."""
        scheduler = EpisodeScheduler(5, 11, samples_per_prompt=samples)
        scheduler.start(40, np.arange(5))
        rng = np.random.default_rng(0)

        def check(seeds: np.ndarray, assigned: Any) -> None:
            expected = prompt_index(seeds, assigned.episode_ids, 11, samples_per_prompt=samples)
            np.testing.assert_array_equal(assigned.prompts, expected)
            np.testing.assert_array_equal(assigned.noise, noise_base(seeds, assigned.episode_ids))

        counts = np.zeros(5, dtype=np.int64)
        for _ in range(60):
            rows = np.flatnonzero(rng.random(5) < 0.5)
            assigned = scheduler.assign(rows)
            np.testing.assert_array_equal(assigned.episode_ids, counts[rows])
            counts[rows] += 1
            check(40 + rows, assigned)
        scheduler.open_queue(600, rank=1, world_size=2)
        assigned_ids: list[int] = []
        while scheduler.queue is not None and scheduler.queue.remaining:
            assigned = scheduler.assign(np.arange(rng.integers(1, 6)))
            assigned_ids += assigned.episode_ids.tolist()
            check(np.full(len(assigned.rows), 40), assigned)
        assert assigned_ids == [episode_id for episode_id in range(600) if episode_id // samples % 2 == 1]

    def test_ranks_share_the_episodes(self) -> None:
        queues = [EpisodeQueue(seed=0, first=5, episodes=10, rank=r, world_size=3) for r in range(3)]
        assigned_ids = [queue.peek(99).tolist() for queue in queues]
        assert assigned_ids == [[5, 8, 11, 14], [6, 9, 12], [7, 10, 13]]
        assert {queue.end for queue in queues} == {15}


class TestSameEpisodes:
    @pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
    @pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
    def test_whatever_the_rows_and_the_timing(self, num_envs: int, autoreset: str) -> None:
        played = rollout(num_envs, 40, autoreset=autoreset)
        assert played == rollout(5, 40)
        assert list(played) == list(range(40))

    def test_whatever_the_slot_order(self) -> None:
        """Rows get their episodes in another order: the row of an episode does not matter."""

        class Backwards(EpisodeScheduler):
            def assign(self, rows: np.ndarray) -> Any:
                return super().assign(rows[::-1].copy())

        envs = vector_env(4)
        envs._scheduler.__class__ = Backwards
        seen = rollout(4, 25, envs=envs)
        assert seen == rollout(4, 25)

    def test_a_longer_rollout_begins_with_the_shorter_one(self) -> None:
        long, short = rollout(3, 30), rollout(8, 12)
        assert short == {episode_id: long[episode_id] for episode_id in range(12)}

    def test_first_in_time_would_be_the_short_ones(self) -> None:
        """The first n episodes by id are an unbiased sample; the first n to finish are not."""
        batch = collect(vector_env(16, max_new_tokens=30), by_key, 400, seed=0)
        mean = float(batch.response_lengths.float().mean())
        expected = (1 - (7 / 8) ** 30) * 8  # stops with probability 1/8, cut at 30
        assert abs(mean - expected) < 4 * 7 / 400**0.5

    def test_seeds_differ(self) -> None:
        assert rollout(3, 20, seed=1) != rollout(3, 20, seed=2)

    def test_without_a_seed_it_goes_on_counting(self) -> None:
        envs = vector_env(3)
        first, second = rollout(3, 10, envs=envs), rollout(3, 15, envs=envs, seed=None)
        assert {**first, **second} == rollout(3, 25)
        assert envs.next_episode_id == 25

    def test_resume_is_one_integer(self) -> None:
        resumed = rollout(7, 15, reset={"first_ticket": 10})
        whole = rollout(3, 25)
        assert resumed == {episode_id: whole[episode_id] for episode_id in range(10, 25)}

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_ranks_together_play_what_one_would(self, world_size: int) -> None:
        parts = [rollout(3, 20, reset={"rank": r, "world_size": world_size}) for r in range(world_size)]
        assert all(set(part) == set(range(r, 20, world_size)) for r, part in enumerate(parts))
        assert {k: v for part in parts for k, v in part.items()} == rollout(3, 20)

    def test_samples_per_prompt(self) -> None:
        batch = collect(vector_env(5, samples_per_prompt=4), by_key, 4 * P, seed=1)
        groups = batch.prompt_index.reshape(P, 4)
        assert (groups == groups[:, :1]).all()
        assert sorted(groups[:, 0].tolist()) == list(range(P))
        assert len({tuple(row) for row in batch.input_ids.tolist()}) > P

    def test_a_row_of_plain_stepping_is_a_queue_of_its_seed(self) -> None:
        """Row i with seed s plays the episodes that a rollout with seed s + i plays."""
        envs = vector_env(3)
        obs, info = envs.reset(seed=3)
        seen: dict[int, list[int]] = {}
        while len(seen) < 6:
            obs, _, _, _, info = envs.step(by_key(obs, info))
            batch = envs.finished
            for i, row in enumerate(envs.finished_rows.tolist()):
                if row == 1 and batch is not None:
                    seen |= texts(batch.select([i]))
        played = rollout(2, 6, seed=4)
        assert {episode_id: seen[episode_id] for episode_id in range(6)} == played


class TestParked:
    def rows(self, autoreset: str = "same_step") -> Iterator[tuple[Any, ...]]:
        envs = vector_env(4, autoreset=autoreset)
        obs, info = envs.reset(seed=0, options={"episodes": 6})
        for _ in range(40):
            obs, rewards, terminated, truncated, info = envs.step(by_key(obs, info))
            yield obs, rewards, terminated, truncated, info

    @pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
    def test_are_frozen_and_say_so(self, autoreset: str) -> None:
        previous: Any = None
        parked_steps = 0
        for obs, rewards, terminated, truncated, info in self.rows(autoreset):
            if previous is not None:
                ended, before = previous
                # A row that waits one step for its next episode is not parked yet.
                parked = ~before[1]["active"] & ~ended & ~info["active"]
                for name, value in obs.items():
                    assert torch.equal(value[parked], before[0][name][parked])
                for flags in (rewards, terminated, truncated):
                    assert not flags[parked].any()
                parked_steps += int(parked.sum())
            previous = (terminated | truncated, (obs, info))
        assert not info["active"].any()
        assert parked_steps > 40

    def test_rows_beyond_the_queue_never_start(self) -> None:
        envs = vector_env(4)
        obs, info = envs.reset(seed=0, options={"episodes": 2})
        assert info["active"].tolist() == [True, True, False, False]
        assert info["episode_id"].tolist() == [0, 1, -1, -1]
        assert obs["attention_mask"][2:].sum() == 0

    def test_reset_mask_draws_from_the_queue(self) -> None:
        envs = vector_env(2, autoreset="disabled")
        envs.reset(seed=0, options={"episodes": 3})
        envs.step([EOS, EOS])
        _, info = envs.reset(options={"reset_mask": np.ones(2, dtype=bool)})
        assert info["episode_id"][0] == 2
        assert info["active"].tolist() == [True, False]

    def test_plain_reset_ends_the_queue(self) -> None:
        envs = vector_env(2)
        envs.reset(seed=0, options={"episodes": 1})
        _, info = envs.reset()
        assert info["active"].all()


class TestWithLanguageModel:
    def episodes(
        self, model: GPT2LMHeadModel, num_envs: int, n: int, cached: bool = True, **kwargs: Any
    ) -> EpisodeBatch:
        envs = vector_env(num_envs, max_new_tokens=12, **kwargs)
        return collect(envs, DecodingPolicy(model, cached=cached), n, seed=2)

    @pytest.mark.parametrize("num_envs", [1, 3, 8, 64])
    def test_float64_is_exact(self, num_envs: int) -> None:
        model = tiny_model(torch.float64)
        expected = self.episodes(model, 5, 40)
        got = self.episodes(model, num_envs, 40)
        assert texts(got) == texts(expected)
        torch.testing.assert_close(got.log_probs, expected.log_probs, rtol=0, atol=1e-10)
        assert got.log_probs is not None and got.log_probs.dtype == torch.float64

    def test_float64_is_exact_without_the_cache_and_in_other_modes(self) -> None:
        model = tiny_model(torch.float64)
        expected = texts(self.episodes(model, 5, 30))
        assert texts(self.episodes(model, 8, 30, cached=False)) == expected
        assert texts(self.episodes(model, 8, 30, autoreset="next_step")) == expected
        assert texts(self.episodes(model, 8, 30, arrays="numpy")) == expected

    def test_float32_differs_in_one_of_10000_tokens_at_most(self) -> None:
        model = tiny_model(torch.float32)
        a, b = (texts(self.episodes(model, num_envs, 600)) for num_envs in (64, 40))
        # An episode is the same up to the first draw that fell within rounding of a boundary.
        wrong = sum(a[episode_id] != b[episode_id] for episode_id in a)
        tokens = sum(map(len, a.values()))
        assert tokens > 4000
        assert wrong <= max(1, tokens // 10_000)

    def test_legality_is_kept(self) -> None:
        model = tiny_model(torch.float64)
        batch = self.episodes(model, 4, 50, min_new_tokens=3, suppressed_tokens=[0, 1, 2])
        steps = torch.where(batch.action_mask, batch.action_steps, -1)
        chosen = batch.input_ids[batch.action_mask]
        assert not torch.isin(chosen, torch.tensor([0, 1, 2])).any()
        early = batch.input_ids[(steps >= 0) & (steps < 3)]
        assert not (early == EOS).any()
        assert (batch.input_ids[steps == 3] == EOS).any()

    def test_a_prompt_longer_than_the_model(self) -> None:
        with pytest.raises(ValueError, match="the model has 13 positions, expected at least the max_length"):
            self.episodes(tiny_model(torch.float32, positions=13), 2, 4)

    def test_a_model_smaller_than_the_tokenizer(self) -> None:
        special = {"bos_token_id": 0, "eos_token_id": 0}
        small = GPT2LMHeadModel(
            GPT2Config(vocab_size=V - 1, n_positions=40, n_layer=1, n_embd=8, n_head=1, **special)
        )
        with pytest.raises(ValueError, match=f"gives {V - 1} logits, expected at least .* {V}"):
            self.episodes(small, 2, 4)


def test_prompts_are_shuffled_by_seed() -> None:
    prompts = PromptSet.from_texts(PROMPTS, TOKENIZER)
    orders = set()
    for seed in range(5):
        batch = collect(vector_env(2, prompts=prompts), by_key, P, seed=seed)
        assert sorted(batch.prompt_index.tolist()) == list(range(P))
        orders.add(tuple(batch.prompt_index.tolist()))
    assert len(orders) == 5


def test_upcoming_prompts_are_those_that_rows_get_next() -> None:
    scheduler = EpisodeScheduler(4, 1000, shuffle=True)
    assert len(scheduler.upcoming(5)) == 0
    scheduler.start(3, np.arange(4))
    scheduler.open_queue(600)
    seen = []
    while scheduler.queue is not None and scheduler.queue.remaining:
        upcoming = scheduler.upcoming(3).tolist()
        assigned_ids = scheduler.assign(np.arange(3)).prompts.tolist()
        assert upcoming == assigned_ids
        seen += assigned_ids
    assert len(seen) == 600
    assert len(scheduler.upcoming(5)) == 0
