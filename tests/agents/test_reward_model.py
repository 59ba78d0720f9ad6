"""Reward models: losses by hand, gradients, data, padding and batching, learning, files, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, GPT2Config

from tests.helpers.numeric_helpers import relative_error
from tests.helpers.reward_helpers import TOKENIZER, config, language_model
from textenv.agents.data.ratings import RewardBatch, drop_tokens, end_rows
from textenv.agents.data.reward_records import as_reward_batch
from textenv.agents.evaluation.reward_model import pair_metrics, rating_metrics, reliability
from textenv.agents.losses.reward_model import bradley_terry_loss, centering_loss, rating_loss
from textenv.agents.make import make_agent
from textenv.agents.policies.reward_scorer import Scorer
from textenv.agents.reward_model import RewardModelAgent, RewardModelConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.rewards.registry import make_reward

LOG2 = math.log(2)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# -- losses --------------------------------------------------------------------------------------------------


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 0.5])
    expected = (-math.log(sigma(1.0)) + LOG2) / 2
    assert float(bradley_terry_loss(chosen, rejected)) == pytest.approx(expected)


def test_margin_shifts_and_soft_labels_mix() -> None:
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    with_margin = bradley_terry_loss(chosen, rejected, margin=torch.tensor([1.0]))
    assert float(with_margin) == pytest.approx(LOG2)
    soft = bradley_terry_loss(chosen, rejected, label=torch.tensor([0.75]))
    assert float(soft) == pytest.approx(-0.75 * math.log(sigma(1)) - 0.25 * math.log(sigma(-1)))


def test_soft_labels_are_best_met_by_their_log_odds() -> None:
    gap = torch.tensor([math.log(3.0)], requires_grad=True)
    bradley_terry_loss(gap, torch.zeros(1), label=torch.tensor([0.75])).backward()
    assert gap.grad is not None and float(gap.grad) == pytest.approx(0.0, abs=1e-7)


def test_centering_and_rating_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 1.0])
    assert float(centering_loss(chosen, rejected)) == pytest.approx((1 + 4) / 2)
    assert float(rating_loss(chosen, torch.tensor([0.0, 4.0]))) == pytest.approx((4 + 9) / 2)


def test_heads_are_averaged_and_weighted() -> None:
    chosen = torch.tensor([[1.0, 3.0]])
    weights = torch.tensor([[2.0, 0.0]])
    value = rating_loss(chosen, torch.tensor([0.0]), weights=weights)
    assert float(value) == pytest.approx((2 * 1 + 0 * 9) / 2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda c, r: bradley_terry_loss(
            c, r, margin=torch.tensor([0.3, 0.0, 1.0]), label=torch.tensor([0.9, 0.5, 1.0])
        ),
        lambda c, r: centering_loss(c, r),
        lambda c, r: rating_loss(c, torch.tensor([1.0, -2.0, 0.5])) + 0 * r.sum(),
    ],
)
def test_gradients_against_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    chosen = torch.randn(3, dtype=torch.float64, requires_grad=True)
    rejected = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


# -- data ----------------------------------------------------------------------------------------------------


def pairs(count: int = 6, **fields: Any) -> PreferenceBatch:
    """Texts with many a's are preferred to texts with many b's."""
    chosen = ["a" * (1 + i % 3) + "c" * (i % 5) for i in range(count)]
    rejected = ["b" * (1 + i % 4) for i in range(count)]
    return PreferenceBatch.from_texts(["d"] * count, chosen, rejected, TOKENIZER, **fields)


def rated(count: int = 5) -> EpisodeBatch:
    texts = ["a" * (i + 1) if i % 2 else "b" * (i + 1) for i in range(count)]
    ratings = [1.0 if i % 2 else -1.0 for i in range(count)]
    return EpisodeBatch.from_texts(["d"] * count, texts, TOKENIZER, rewards=ratings)


def whole_texts(episodes: EpisodeBatch) -> list[str]:
    sides = zip(episodes.prompt_texts(TOKENIZER), episodes.completion_texts(TOKENIZER), strict=True)
    return ["".join(side) for side in sides]


def test_selecting_items_keeps_pairs_together() -> None:
    batch = RewardBatch.of(pairs(label=torch.arange(6) / 10 + 0.5), rated())
    part = batch.select(torch.tensor([7, 2, 10, 0]))
    assert (part.pairs, part.rated, len(part)) == (2, 2, 4)
    assert part.item.tolist() == [2, 0, 7, 10]
    assert part.label.tolist() == pytest.approx([0.7, 0.5])
    texts = whole_texts(part.episodes)
    assert texts == ["daaacc", "da", "dbbb", "db", "daa", "dbbbbb"]
    assert part.ratings.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_microbatches_hold_every_item_once_within_the_budget(budget: int) -> None:
    batch = RewardBatch.of(pairs(), rated())
    parts = list(batch.microbatches(budget))
    assert sorted(int(i) for part in parts for i in part.item) == list(range(11))
    for part in parts:
        rows, width = part.episodes.input_ids.shape
        assert rows * width <= budget or len(part) == 1


def test_ratings_come_from_a_column_or_the_returns() -> None:
    episodes = rated(2)
    assert RewardBatch.of(rated=episodes).ratings.tolist() == [-1.0, 1.0]
    episodes.extras = {"rating": [3, 0.5]}
    assert RewardBatch.of(rated=episodes).ratings.tolist() == [3.0, 0.5]
    episodes.extras = {"rating": [3, None]}
    with pytest.raises(ValueError, match=r"rating\[1\] must be a number, got None"):
        RewardBatch.of(rated=episodes)


def test_users_rows_of_both_kinds() -> None:
    rows = [{"prompt": "d", "chosen": "a", "rejected": "b", "label": 0.8, "margin": 0.5}]
    texts = [{"text": "daa", "reward": 2.0}]
    batch = as_reward_batch({"pairs": rows, "ratings": texts}, TOKENIZER)
    assert (batch.pairs, batch.rated) == (1, 1)
    assert batch.label.tolist() == pytest.approx([0.8]) and batch.margin.tolist() == [0.5]
    with pytest.raises(ValueError, match="chosen and rejected, or a column reward or rating"):
        as_reward_batch([{"prompt": "d"}], TOKENIZER)


def test_rows_end_by_eos_or_not_as_the_scorer_reads_them() -> None:
    batch = RewardBatch.of(pairs(2, append_eos=False), rated(1))
    eos = TOKENIZER.eos_token_id
    for with_eos in (True, False):
        ended = end_rows(batch, eos, with_eos=with_eos).episodes
        last = ended.input_ids[torch.arange(5), ended.lengths - 1]
        assert bool((last == eos).all()) if with_eos else bool((last != eos).all())
        ended.validate()
    texts = whole_texts(ended)
    assert texts == ["da", "daac", "db", "dbb", "db"]


def test_dropped_tokens_leave_the_rest_in_order() -> None:
    batch = RewardBatch.of(pairs(), rated(40)).episodes
    kept = drop_tokens(batch, 0.5)
    kept.validate()
    whole, fewer = batch.lengths.tolist(), kept.lengths.tolist()
    assert 0.3 < (sum(fewer) - 2 * len(batch)) / (sum(whole) - 2 * len(batch)) < 0.7
    for row, (n, m) in enumerate(zip(whole, fewer, strict=True)):
        before, after = batch.input_ids[row, :n].tolist(), kept.input_ids[row, :m].tolist()
        assert (before[0], before[-1]) == (after[0], after[-1])
        place = iter(before)
        assert all(token in place for token in after)
    assert torch.equal(drop_tokens(batch, 0.0).input_ids, batch.input_ids)


# -- the scorer ----------------------------------------------------------------------------------------------


def scorer(**options: Any) -> Scorer:
    return Scorer(config(), tokenizer=TOKENIZER, **options)


def test_fresh_heads_have_the_usual_spread() -> None:
    wide = GPT2Config(n_layer=1, n_embd=1024, n_head=2, vocab_size=9, pad_token_id=0)
    weight = Scorer(wide, heads=8).model.score.weight.detach()
    assert float(weight.std()) == pytest.approx(1025**-0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_padding_changes_no_score(kind: str) -> None:
    bert = BertConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1
    )
    model = Scorer(config() if kind == "gpt2" else bert, tokenizer=None).double()
    batch = RewardBatch.of(pairs(), rated()).episodes
    together = model(batch)
    for row in range(len(batch)):
        assert torch.allclose(model(batch.select([row])), together[row], atol=1e-12)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("append_eos", [False, True])
def test_saved_scorer_is_a_plain_classifier_with_the_same_scores(
    heads: int, append_eos: bool, tmp_path: Path
) -> None:
    model = scorer(heads=heads, append_eos=append_eos, dropout=0.1)
    model.save(tmp_path)
    texts = ["a", "cab fed", "bag"]
    expected = model.score_texts(texts)

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.num_labels == 1 and plain.config.pad_token_id is not None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    end = tokenizer.eos_token if append_eos else ""
    inputs = tokenizer([text + end for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = plain(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert relative_error([logits[:, 0]], [expected]) < 1e-5

    name, settings = model.reward_spec(tmp_path)
    term = make_reward([name, settings])
    term.tokenizer = TOKENIZER
    episodes = EpisodeBatch.from_texts(["a", "cab ", "b"], ["", "fed", "ag"], TOKENIZER)
    assert relative_error([term.score(episodes)], [expected]) < 1e-5

    again = Scorer.load(tmp_path)
    assert (again.heads, again.append_eos, again.dropout) == (heads, append_eos, 0.1)
    batch = rated()
    assert relative_error([again.score(batch)], [model.score(batch)]) < 1e-5


def test_a_causal_lm_gives_its_trunk(tmp_path: Path) -> None:
    lm = language_model()
    lm.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model = Scorer(tmp_path)
    assert torch.equal(model.model.transformer.wte.weight, lm.transformer.wte.weight)


# -- learning ------------------------------------------------------------------------------------------------


def agent(data: Any, model: Any = None, **settings: Any) -> RewardModelAgent:
    settings = {"learning_rate": 1e-2, "batch_size": 4, **settings}
    eval_data = settings.pop("eval_dataset", None)
    run_dir = settings.pop("run_dir", None)
    return RewardModelAgent(
        config() if model is None else model,
        dataset=data,
        eval_dataset=eval_data,
        tokenizer=TOKENIZER,
        config=RewardModelConfig(**settings),
        run_dir=run_dir,
    )


def both() -> dict[str, Any]:
    return {"pairs": pairs(12), "ratings": rated(8)}


def test_it_learns_pairs_and_ratings() -> None:
    learner = agent(both(), epochs=12, eval_dataset={"pairs": pairs(20), "ratings": rated(9)})
    before = learner.evaluate().metrics
    result = learner.learn()
    after = learner.evaluate().metrics
    assert after["accuracy"] == 1.0 and after["spearman"] > 0.8
    assert after["log_loss"] < before["log_loss"] and after["rmse"] < 0.5
    assert result.evaluation is not None and result.evaluation.metrics["pairs"] == 20


@pytest.mark.parametrize("heads", [1, 2])
def test_gradient_does_not_depend_on_the_split(heads: int) -> None:
    gradients = []
    for budget in (10_000, 1):
        learner = agent(both(), heads=heads, centering_coef=0.01, max_tokens_per_microbatch=budget)
        learner.policy.double()
        batch = learner.dataset.select(torch.arange(20))
        totals = learner.totals(batch)
        for part in batch.microbatches(budget):
            learner.loss(part, totals)[0].backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in learner.policy.parameters() if p.grad is not None])
        )
    assert gradients[0].abs().max() > 1e-3
    assert torch.allclose(*gradients, atol=1e-12)


def test_one_pass_of_small_batches_weighs_every_item_the_same() -> None:
    learner = agent(both(), batch_size=3)
    learner.policy.double()
    whole = learner.dataset.select(torch.arange(20))
    expected = learner.loss(whole, learner.totals(whole))[0]
    parts = [learner.dataset.select(index) for index in torch.randperm(20).split(4)]
    losses = [learner.loss(part, learner.totals(part))[0] for part in parts]
    assert torch.allclose(torch.stack(losses).mean(), expected, atol=1e-12)


def test_heads_learn_from_different_resamples() -> None:
    learner = agent(both(), heads=4)
    weights = learner.bootstrap(torch.arange(4000), torch.zeros(1))
    assert weights is not None and weights.shape == (4000, 4)
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(weights.var()) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(weights[5:9], learner.bootstrap(torch.arange(5, 9), torch.zeros(1)))
    learner.learn()
    assert learner.evaluate(both()).metrics["score/disagreement"] > 0


def test_the_run_folder_loads_plainly(tmp_path: Path) -> None:
    learner = make_agent(
        "reward-model",
        config(),
        dataset=pairs(),
        eval_dataset=pairs(8),
        tokenizer=TOKENIZER,
        run_dir=tmp_path,
    )
    learner.learn()
    latest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    plain = AutoModelForSequenceClassification.from_pretrained(latest)
    assert plain.config.num_labels == 1
    assert (tmp_path / "tables" / "eval_samples.jsonl").exists()


def test_a_reward_model_does_not_act_and_refuses_too_long_texts() -> None:
    learner = agent(pairs())
    with pytest.raises(TypeError, match="does not act"):
        learner.act({})
    long = PreferenceBatch.from_texts(["d"], ["a" * 100], ["b"], TOKENIZER)
    with pytest.raises(ValueError, match="row 0 of the data set has 101 tokens, but the model has 64"):
        agent(long)


# -- evaluation ----------------------------------------------------------------------------------------------


def test_accuracy_counts_ties_half_and_leaves_out_undecided_labels() -> None:
    metrics = pair_metrics(torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([0.9, 0.8, 0.7, 0.5]))
    assert metrics["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics["accuracy/ties"] == 0.25
    assert metrics["agreement"] == pytest.approx((0.9 + 0.2 + 0.5 + 0.5) / 4)
    assert metrics["agreement/ceiling"] == pytest.approx((0.9 + 0.8 + 0.7 + 0.5) / 4)
    below = pair_metrics(torch.tensor([-1.0]), torch.tensor([0.2]))
    assert below["accuracy"] == 1.0


def test_calibration_by_hand() -> None:
    logit = math.log(0.72 / 0.28)
    table = reliability(torch.tensor([logit, -logit, logit, 0.0]), bins=5)
    assert [row.count for row in table] == [1, 0, 3, 0, 0]
    assert table[2].confidence == pytest.approx(0.72) and table[2].accuracy == pytest.approx(2 / 3)
    assert table[0].confidence == 0.5 and table[0].accuracy == 0.5
    metrics = pair_metrics(torch.tensor([logit, -logit, logit, 0.0]), bins=5)
    assert metrics["ece"] == pytest.approx(3 / 4 * (0.72 - 2 / 3))


def test_a_perfectly_calibrated_model_has_no_calibration_error() -> None:
    gap = torch.linspace(-3, 3, 101)
    metrics = pair_metrics(gap, gap.sigmoid())
    assert metrics["ece"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["agreement"] == pytest.approx(metrics["agreement/ceiling"], abs=1e-6)


def test_rank_correlation() -> None:
    metrics = rating_metrics(torch.tensor([0.1, 0.2, 5.0]), torch.tensor([-1.0, 0.0, 1.0]))
    assert metrics["spearman"] == pytest.approx(1.0) and metrics["pearson"] < 1
    assert metrics["rmse"] == pytest.approx(math.sqrt((1.1**2 + 0.2**2 + 4**2) / 3))
    assert math.isnan(rating_metrics(torch.zeros(3), torch.arange(3.0))["spearman"])
