from __future__ import annotations

import pytest
import torch

from textenv.modeling.kl import kl_estimate, kl_full


def _distributions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, generator=generator, dtype=torch.float64)
    return logits, logits + 0.5 * torch.randn(7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_unbiased_estimators_have_the_full_kl_as_their_mean(kind: str) -> None:
    logits, ref_logits = _distributions()
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    expectation = (log_p.exp() * kl_estimate(log_p, log_q, kind)).sum()
    assert float(expectation) == pytest.approx(float(kl_full(logits, ref_logits)), rel=1e-12)


def test_numbers_worked_by_hand() -> None:
    log_p, log_q = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])
    torch.testing.assert_close(kl_estimate(log_p, log_q, "k1"), torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(kl_estimate(log_p, log_q, "k2"), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(kl_estimate(log_p, log_q, "k3"), torch.tensor([0.36787944, 4.3890561]))
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log 2 + 1/2 log(2/3)
    full = kl_full(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 3.0]).log())
    assert float(full) == pytest.approx(0.14384104, abs=1e-7)


def test_k3_keeps_its_sign_and_size_near_zero() -> None:
    # exp(-d) - 1 + d in float32 gives 0 or noise of 1e-7 here; the true value is d^2 / 2.
    d = torch.tensor([1e-4, -1e-4])
    k3 = kl_estimate(d, torch.zeros(2), "k3")
    assert bool((k3 >= 0).all())
    assert k3.tolist() == pytest.approx([5e-9, 5e-9], rel=0.01)


def test_illegal_tokens_add_nothing_to_value_or_gradient() -> None:
    logits, ref_logits = _distributions()
    illegal = torch.tensor([0, 1, 0, 0, 0, 0, 1], dtype=torch.bool)
    legal = ~illegal
    masked = logits.masked_fill(illegal, -torch.inf).requires_grad_()
    value = kl_full(masked, ref_logits.masked_fill(illegal, -torch.inf))
    value.backward()
    assert float(value.detach()) == pytest.approx(float(kl_full(logits[legal], ref_logits[legal])), rel=1e-12)
    assert bool(masked.grad.isfinite().all())


def test_a_reference_that_forbids_a_possible_token_is_infinitely_far() -> None:
    assert float(kl_full(torch.zeros(2), torch.tensor([0.0, -torch.inf]))) == torch.inf


def test_full_kl_is_differentiable() -> None:
    logits, ref_logits = _distributions()
    assert torch.autograd.gradcheck(kl_full, (logits.requires_grad_(), ref_logits.requires_grad_()))


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of k1, k2, k3, got 'k4'"):
        kl_estimate(torch.zeros(2), torch.zeros(2), "k4")
    with pytest.raises(
        ValueError, match=r"ref_log_probs must have the shape of log_probs \(2,\), got \(3,\)"
    ):
        kl_estimate(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"ref_logits must have the shape of logits \(2,\), got \(3,\)"):
        kl_full(torch.zeros(2), torch.zeros(3))
