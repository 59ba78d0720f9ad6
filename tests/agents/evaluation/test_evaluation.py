"""Evaluation: right numbers, the same ones every time, and no trace left in training."""

from __future__ import annotations

import io
import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.helpers.models import letters
from textenv import collect
from textenv.agents.evaluation.evaluator import Evaluation, evaluate, user_metrics
from textenv.agents.evaluation.metrics.text import distinct_n, repetition_n
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.term import RewardTerm
from textenv.tasks.make import make_vec_env
from textenv.utils.hashing import uniform

ALPHABET = "abcd"
TOKENIZER = letters(ALPHABET)
EOS = TOKENIZER.eos_token_id


class Biased:
    """Chooses letters with fixed probabilities, by the noise key alone; knows its log-probs."""

    def __init__(self, eos: float = 0.2, first: float = 0.3) -> None:
        rest = (1 - eos - first) / (len(ALPHABET) - 1)
        self.probabilities = torch.zeros(len(TOKENIZER), dtype=torch.float64)
        self.probabilities[: len(ALPHABET)] = rest
        self.probabilities[0], self.probabilities[EOS] = first, eos

    def act(self, obs: Any, key: torch.Tensor, *, active: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        actions = torch.searchsorted(self.probabilities.cumsum(0), uniform(key)).clamp_max(len(TOKENIZER) - 1)
        return actions, {"log_prob": self.probabilities.log()[actions].float()}

    def log_prob(self, episodes: EpisodeBatch) -> torch.Tensor:
        return torch.where(episodes.action_mask, self.probabilities.log()[episodes.input_ids], 0.0)


class Moving(RewardTerm):
    """Reward 1 for every "a"; counts how often its state is asked to move, and draws random numbers."""

    name = "moving"

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def score(self, episodes: EpisodeBatch) -> torch.Tensor:
        random.random(), np.random.rand(), torch.rand(3)
        return ((episodes.input_ids == 0) & episodes.action_mask).sum(-1).float() + self.updates

    def update(self, episodes: EpisodeBatch) -> None:
        self.updates += 1


def make_envs(rewards: list[Any], prompts: list[str] | None = None, num_envs: int = 4) -> Any:
    return make_vec_env(
        num_envs, prompts=prompts or ["ab", "c", "dd"], tokenizer=TOKENIZER, rewards=rewards, max_new_tokens=6
    )


def _same(first: Evaluation, second: Evaluation) -> bool:
    return first.metrics == second.metrics and first.samples == second.samples


def test_numbers_agree_with_the_episodes() -> None:
    evaluation = evaluate(Biased(), make_envs([Moving()]), 50)
    batch, metrics = evaluation.episodes, evaluation.metrics
    texts = batch.completion_texts(TOKENIZER)
    counts = torch.tensor([float(text.count("a")) for text in texts])
    assert metrics["episodes"] == len(batch) == 50
    assert metrics["return/mean"] == metrics["terms/moving"] == pytest.approx(float(counts.mean()))
    assert metrics["return/std"] == pytest.approx(float(counts.std(correction=0)))
    assert (metrics["return/min"], metrics["return/max"]) == (float(counts.min()), float(counts.max()))
    lengths = [len(text) + int(ended) for text, ended in zip(texts, batch.terminated, strict=True)]
    assert metrics["episode/length"] == pytest.approx(sum(lengths) / 50)
    assert metrics["episode/eos_rate"] == pytest.approx(float(batch.terminated.float().mean()))
    assert 0 < metrics["episode/eos_rate"] < 1
    tokens = [token for text in texts for token in text] + ["EOS"] * int(batch.terminated.sum())
    assert metrics["text/distinct_1"] == pytest.approx(len(set(tokens)) / len(tokens))
    own = Biased().log_prob(batch)[batch.action_mask]
    assert metrics["objective/entropy"] == pytest.approx(-float(own.mean()))
    assert "objective/kl" not in metrics
    assert all(type(value) is float for value in metrics.values())


def test_kl_against_a_reference_is_worked_by_hand() -> None:
    policy, reference = Biased(first=0.5), Biased(first=0.3)
    evaluation = evaluate(policy, make_envs([]), 40, reference=reference, max_tokens=30)
    batch = evaluation.episodes
    total = 0.0
    for row, mask in zip(batch.input_ids, batch.action_mask, strict=True):
        for token in row[mask].tolist():
            total += math.log(float(policy.probabilities[token]) / float(reference.probabilities[token]))
    assert evaluation.metrics["objective/kl"] == pytest.approx(total / 40)
    per_token = total / int(batch.action_mask.sum())
    assert evaluation.metrics["objective/kl_per_token"] == pytest.approx(per_token)
    assert evaluate(policy, make_envs([]), 40, reference=policy).metrics["objective/kl"] == 0.0


def test_repeated_evaluations_and_any_number_of_rows_see_the_same_episodes() -> None:
    envs = make_envs([Moving()])
    first = evaluate(Biased(), envs, 17)
    assert _same(first, evaluate(Biased(), envs, 17))
    assert _same(first, evaluate(Biased(), make_envs([Moving()], num_envs=3), 17))
    assert evaluate(Biased(), envs, 17, seed=1).samples != first.samples
    longer = evaluate(Biased(), envs, 30)
    assert longer.samples == first.samples  # the first episodes stay the first


def test_training_does_not_notice() -> None:
    def train(with_evaluation: bool) -> tuple[list[EpisodeBatch], int, tuple[float, float, float]]:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        term, policy = Moving(), Biased()
        envs, eval_envs = make_envs([term]), make_envs([term], ["a", "b"])
        batches = [collect(envs, policy, 9, seed=5)]
        if with_evaluation:
            evaluate(policy, eval_envs, 20, metric_fn=lambda prompts, completions: {"x": random.random()})
        batches.append(collect(envs, policy, 9))
        return batches, term.updates, (random.random(), float(np.random.rand()), float(torch.rand(1)))

    (plain, plain_updates, plain_draws), (other, other_updates, other_draws) = train(False), train(True)
    for a, b in zip(plain, other, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.episode_id, b.episode_id)
        assert torch.equal(a.rewards, b.rewards)
    assert plain_updates == other_updates == 2
    assert plain_draws == other_draws


def test_the_policy_is_bound_only_for_the_time() -> None:
    seen: list[Any] = []

    class Curious(Moving):
        def score(self, episodes: EpisodeBatch) -> torch.Tensor:
            seen.append(envs.unwrapped.policy)
            return super().score(episodes)

    envs, before, policy = make_envs([Curious()]), object(), Biased()
    envs.unwrapped.bind(before)
    evaluate(policy, envs, 3)
    assert seen == [policy]
    assert envs.unwrapped.policy is before

    class Broken(Biased):
        def act(self, obs: Any, key: Any, *, active: Any = None) -> Any:
            raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        evaluate(Broken(), envs, 3)
    assert envs.unwrapped.policy is before


def test_a_plain_function_can_be_evaluated() -> None:
    evaluation = evaluate(lambda obs, info: torch.zeros(4, dtype=torch.int64), make_envs([Moving()]), 5)
    assert evaluation.metrics["return/mean"] == 6.0
    assert evaluation.metrics["episode/eos_rate"] == 0.0
    assert evaluation.metrics["text/repetition"] == pytest.approx(0.75)  # 4 trigrams, one distinct
    assert "objective/entropy" not in evaluation.metrics


def test_samples_and_tables() -> None:
    def shouting(prompts: list[str], completions: list[str]) -> dict[str, Any]:
        return {"a_rate": [text.count("a") / max(1, len(text)) for text in completions], "fixed": 0.5}

    evaluation = evaluate(Biased(), make_envs([Moving()]), 6, samples=4, metric_fn=shouting)
    texts = evaluation.episodes.completion_texts(TOKENIZER)
    assert [sample["completion"] for sample in evaluation.samples] == texts[:4]
    first = evaluation.samples[0]
    assert first["terms"] == {"moving": first["return"]}
    assert first["metrics"] == {"a_rate": texts[0].count("a") / max(1, len(texts[0]))}
    columns, rows = evaluation.sample_table()
    assert columns == ["prompt", "completion", "return", "length", "moving", "metric/a_rate"]
    assert [len(row) for row in rows] == [6] * 4
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(evaluation.table())
    assert "over 6 episodes" in console.export_text()
    assert json.loads(json.dumps(evaluation.to_dict()))["metrics"]["metric/fixed"] == 0.5
    assert evaluate(Biased(), make_envs([]), 3, samples=9).samples[2:] != []
    assert evaluate(Biased(), make_envs([]), 3, samples=0).sample_table()[1] == []


def test_non_finite_metrics_are_none_in_json() -> None:
    evaluation = evaluate(Biased(), make_envs([]), 3, metric_fn=lambda p, c: {"x": [None] * 3})
    assert math.isnan(evaluation.metrics["metric/x"])
    assert evaluation.to_dict()["metrics"]["metric/x"] is None
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_columns_reach_the_metric_that_names_them() -> None:
    calls: list[dict[str, Any]] = []

    def all_columns(prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, float]:
        calls.append(columns)
        return {}

    def one_column(prompts: list[str], completions: list[str], answer: list[str]) -> dict[str, list[float]]:
        return {"right": [float(a == c) for a, c in zip(answer, completions, strict=True)]}

    columns = {"answer": ["x", "y"], "topic": [1, 2]}
    assert user_metrics(all_columns, ["p", "q"], ["x", "x"], columns) == ({}, {})
    assert calls == [columns]
    assert user_metrics(one_column, ["p", "q"], ["x", "x"], columns) == (
        {"right": 0.5},
        {"right": [1.0, 0.0]},
    )


@pytest.mark.parametrize(
    ("given", "mean"),
    [
        ([1.0, None], 1.0),
        (torch.tensor([1.0, 2.0]), 1.5),
        (np.array([True, False]), 0.5),
        (torch.tensor(3.0), 3.0),
        (np.float32(2.0), 2.0),
        (2, 2.0),
    ],
)
def test_forms_of_values(given: Any, mean: float) -> None:
    means, _ = user_metrics(lambda p, c: {"x": given}, ["p", "q"], ["c", "d"], {})
    assert means == {"x": mean}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"x": [1.0]}, ValueError, "metric_fn 'broken': 'x' must have 2 values, got 1"),
        ({"x": "high"}, TypeError, "metric_fn 'broken': 'x' must hold numbers, got 'high'"),
        ({"x": [1.0, "low"]}, TypeError, "'x' must hold numbers, got 'low'"),
        (3.0, TypeError, "metric_fn 'broken' must return a dictionary, got float"),
    ],
)
def test_bad_metrics_are_named(given: Any, error: type[Exception], message: str) -> None:
    def broken(prompts: list[str], completions: list[str]) -> Any:
        return given

    with pytest.raises(error, match=message):
        user_metrics(broken, ["p", "q"], ["c", "d"], {})


def test_a_metric_that_raises_is_not_swallowed() -> None:
    def broken(prompts: list[str], completions: list[str]) -> Any:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone") as caught:
        evaluate(Biased(), make_envs([]), 3, metric_fn=broken)
    assert caught.value.__notes__ == ["raised by metric_fn 'broken' on 3 episodes"]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="samples must be >= 0, got -1"):
        evaluate(Biased(), make_envs([]), 3, samples=-1)
    with pytest.raises(ValueError, match="episodes must be >= 1, got 0"):
        evaluate(Biased(), make_envs([]), 0)
    with pytest.raises(TypeError, match="needs a native vector environment, got object"):
        evaluate(Biased(), object(), 1)
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        repetition_n([1], 0)
    assert math.isnan(distinct_n([[1]], 2))
