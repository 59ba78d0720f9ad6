"""Draws: the right distribution, a function of the key alone, and filters that keep what they should."""

from __future__ import annotations

import pytest
import torch

from textenv.generation import sampling
from textenv.generation.sampling import (
    filter_top_k_top_p,
    greedy_with_log_prob,
    log_prob_of,
    sample,
    sample_with_log_prob,
)
from textenv.utils.hashing import hash_key

INF = torch.inf


def logits(rows: int, vocabulary: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("vocabulary", [7, 1500], ids=["direct", "two-level"])
@pytest.mark.parametrize("algorithm", ["inverse-cdf", "gumbel"])
def test_draws_follow_the_softmax(vocabulary: int, algorithm: str) -> None:
    row = logits(1, vocabulary)
    draws, chunk = 40_000 if vocabulary == 7 or algorithm == "inverse-cdf" else 12_000, 1000
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for start in range(0, draws, chunk):
        key = hash_key(torch.arange(start, start + chunk))
        same = row.expand(chunk, -1)
        tokens = sample(same, key) if algorithm == "inverse-cdf" else sampling._gumbel_argmax(same, key)
        counts += torch.bincount(tokens, minlength=vocabulary)
    expected = torch.softmax(row[0].double(), -1) * counts.sum()
    often = expected > 8
    statistic = ((counts - expected) ** 2 / expected)[often].sum()
    degrees = int(often.sum())
    # Chi-squared: mean k, variance 2k; five standard deviations.
    assert abs(float(statistic) - degrees) < 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("vocabulary", [11, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_depends_on_its_key_alone(vocabulary: int, dtype: torch.dtype) -> None:
    rows = logits(40, vocabulary).to(dtype)
    key = hash_key(torch.arange(40), 5)
    together = sample(rows, key)
    assert len(set(together.tolist())) > 4
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(rows[order], key[order]), together[order])
    for i in range(0, 40, 7):
        assert torch.equal(sample(rows[i : i + 1], key[i : i + 1]), together[i : i + 1])
    assert not torch.equal(sample(rows, key + 1), together)


@pytest.mark.parametrize("vocabulary", [1024, 1025, 1100, 1280, 5000])
def test_every_block_and_the_last_token_can_be_reached(vocabulary: int) -> None:
    for token in (0, 255, 256, vocabulary - 2, vocabulary - 1):
        rows = torch.full((64, vocabulary), -INF)
        rows[:, token] = 3.0
        assert sample(rows, torch.arange(64)).tolist() == [token] * 64


@pytest.mark.parametrize("vocabulary", [9, 2000])
@pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, 1.0 - 2.0**-53, 1.0])
def test_the_ends_of_the_unit_interval_never_give_an_impossible_token(vocabulary: int, u: float) -> None:
    possible = torch.arange(vocabulary) % 3 == 1
    possible[-4:] = False
    probs = torch.softmax(logits(5, vocabulary).masked_fill(~possible, -INF), -1)
    tokens = sampling._inverse_cdf(probs, torch.full((5,), u, dtype=torch.float64))
    assert possible[tokens].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_log_prob_is_that_of_the_token(dtype: torch.dtype) -> None:
    rows = logits(6, 2000).to(dtype)
    tokens, log_prob = sample_with_log_prob(rows, torch.arange(6))
    exact = torch.log_softmax(rows.double(), -1).gather(-1, tokens[:, None]).squeeze(-1)
    wide = dtype == torch.float64
    assert log_prob.dtype == (torch.float64 if wide else torch.float32)
    torch.testing.assert_close(log_prob.double(), exact, atol=1e-12 if wide else 1e-5, rtol=0)
    best, best_log_prob = greedy_with_log_prob(rows)
    assert torch.equal(best, rows.argmax(-1))
    torch.testing.assert_close(
        best_log_prob.double(), torch.log_softmax(rows.double(), -1).amax(-1), atol=1e-5, rtol=0
    )


def test_without_a_key_the_global_generator_draws() -> None:
    rows = logits(50, 100, scale=0.1)
    torch.manual_seed(3)
    first, second = sample(rows), sample(rows)
    torch.manual_seed(3)
    assert torch.equal(sample(rows), first) and not torch.equal(first, second)


def test_logits_are_not_modified() -> None:
    rows = logits(4, 1500)
    before = rows.clone()
    sample_with_log_prob(rows, torch.arange(4))
    filter_top_k_top_p(rows, 5, 0.5)
    assert torch.equal(rows, before)


def test_top_k_keeps_the_k_likeliest_and_ties() -> None:
    row = torch.tensor([[1.0, 4.0, 2.0, 3.0, 2.0]])
    assert filter_top_k_top_p(row, 2).tolist() == [[-INF, 4.0, -INF, 3.0, -INF]]
    assert filter_top_k_top_p(row, 3).tolist() == [[-INF, 4.0, 2.0, 3.0, 2.0]]
    assert torch.equal(filter_top_k_top_p(row, 0), row) and torch.equal(filter_top_k_top_p(row, 9), row)


def test_top_p_keeps_the_smallest_set_with_that_mass() -> None:
    row = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for p, kept in ((0.3, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (0.95, [0, 1, 2, 3])):
        assert filter_top_k_top_p(row, 0, p).isfinite()[0].nonzero().squeeze(-1).tolist() == kept
    # After top-k the mass is that of what is left: 0.4 and 0.3 become 0.57 and 0.43.
    assert filter_top_k_top_p(row, 2, 0.5).isfinite()[0].nonzero().squeeze(-1).tolist() == [1]


@pytest.mark.parametrize("scale", [0.1, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("top_k", [0, 700])
def test_top_p_without_a_full_sort_equals_the_full_sort(scale: float, top_k: int) -> None:
    rows = logits(5, 4000, scale).masked_fill(torch.arange(4000) % 5 == 0, -INF)
    ranked, order = (filter_top_k_top_p(rows, top_k)).double().sort(-1, descending=True)
    mass = ranked.softmax(-1).cumsum(-1)
    before = mass - ranked.softmax(-1)
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, (before < 0.8) & ranked.isfinite())
    assert torch.equal(filter_top_k_top_p(rows, top_k, 0.8).isfinite(), kept)


def test_bad_filters() -> None:
    with pytest.raises(ValueError, match="top_k must be >= 0, got -1"):
        filter_top_k_top_p(logits(1, 4), -1)
    for p, expected in ((0.0, "lie in"), (1.5, "lie in"), (INF, "be a finite number, got inf")):
        with pytest.raises(ValueError, match=f"top_p must {expected}"):
            filter_top_k_top_p(logits(1, 4), 0, p)


def test_log_prob_of_illegal_tokens_is_minus_infinity() -> None:
    row = torch.tensor([[0.0, -INF]])
    assert log_prob_of(row, torch.tensor([1])).item() == -INF


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_depend_on_the_key_alone() -> None:
    rows, key = logits(40, 3000).cuda(), hash_key(torch.arange(40)).cuda()
    together, log_prob = sample_with_log_prob(rows, key)
    torch.testing.assert_close(log_prob, log_prob_of(rows, together))
    for i in range(0, 40, 7):
        assert torch.equal(sample(rows[i : i + 1], key[i : i + 1]), together[i : i + 1])
    assert torch.equal(together.cpu(), sampling._gumbel_argmax(rows.cpu(), key.cpu()))
