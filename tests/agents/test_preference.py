"""Preference agents and reward-weighted regression: formulas, splits, references, data, files, learning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import textenv
from tests.helpers.models import TOKENIZER
from tests.helpers.policy_helpers import gpt2_config
from textenv.agents.base.registry import agent_names
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.data.preferences import (
    PairedBatch,
    as_labelled,
    as_pairs,
    mismatched,
    pairs_from_returns,
)
from textenv.agents.dpo import KTO, DPOConfig, KTOConfig, SimPOConfig
from textenv.agents.make import make_agent
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.rwr import RWR, reward_weights
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch

PAIR_AGENTS = ("dpo", "orpo", "simpo", "cpo")
ALL = (*PAIR_AGENTS, "kto")


def responses(count: int, *, seed: int, longest: int = 9) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(2, 50, (size,), generator=generator).tolist() for size in sizes]


def some_pairs(count: int = 6, **fields: Any) -> PreferenceBatch:
    prompts = [[5 + i, 6, 7][: 1 + i % 3] for i in range(count)]
    return PreferenceBatch(
        chosen=EpisodeBatch.from_ids(prompts, responses(count, seed=1)),
        rejected=EpisodeBatch.from_ids(prompts, responses(count, seed=2)),
        **fields,
    )


def policy64(seed: int = 0) -> LanguagePolicy:
    return LanguagePolicy(gpt2_config(n_layer=2), dtype=torch.float64, seed=seed)


def moved(name: str, **options: Any) -> Any:
    """An agent whose policy has left its reference."""
    agent = make_agent(name, policy64(), dataset=options.pop("dataset", some_pairs()), **options)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in agent.policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.05 * noise
    return agent


def gradient_of(agent: Any, batch: TrainingBatch) -> tuple[dict[str, float], Tensor]:
    """Metrics of a step, and the gradient that it followed."""
    kept: list[Tensor] = []
    agent.optimizer.register_step_pre_hook(
        lambda *_: kept.append(torch.cat([p.grad.flatten() for p in agent.parameters]))
    )
    return agent.optimizer_step(batch), kept[0]


def sums(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    chosen, rejected = log_probs.sum(-1).view(2, -1)
    return chosen, rejected


# -- formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpo", {}),
        ("dpo", {"loss": "cdpo", "label_smoothing": 0.2}),
        ("dpo", {"loss": "robust", "label_smoothing": 0.2}),
        ("dpo", {"loss": "ipo"}),
        ("dpo", {"loss": "hinge"}),
        ("orpo", {}),
        ("simpo", {"gamma": 0.3}),
        ("cpo", {"nll_coef": 0.5}),
    ],
)
def test_losses_of_agents_are_the_formulas(name: str, options: dict[str, Any]) -> None:
    beta = 0.3
    agent = moved(name, beta=beta, max_grad_norm=None, **options)
    whole = agent.dataset
    chosen, rejected = sums(agent.policy.log_prob(whole.episodes))
    counts_c, counts_r = whole.episodes.response_lengths.view(2, -1)
    if agent.has_reference:
        ref_c, ref_r = sums(agent.reference.log_prob(whole.episodes))
        d_c, d_r = chosen - ref_c, rejected - ref_r
        assert float((d_c - d_r).abs().min()) > 1e-3
        gap, e = beta * (d_c - d_r), options.get("label_smoothing", 0.0)
        expected = {
            "sigmoid": -logsigmoid(gap),
            "cdpo": -(1 - e) * logsigmoid(gap) - e * logsigmoid(-gap),
            "robust": (-(1 - e) * logsigmoid(gap) + e * logsigmoid(-gap)) / (1 - 2 * e),
            "ipo": (d_c / counts_c - d_r / counts_r - 1 / (2 * beta)) ** 2,
            "hinge": (1 - gap).clamp_min(0),
        }[options.get("loss", "sigmoid")].mean()
        rewards = beta * d_c, beta * d_r
    else:
        assert agent.reference is None
        mean_c, mean_r = chosen / counts_c, rejected / counts_r

        def odds(x: Tensor) -> Tensor:
            return x - torch.log(1 - x.exp())

        expected = {
            "orpo": (-mean_c - beta * logsigmoid(odds(mean_c) - odds(mean_r))).mean(),
            "simpo": -logsigmoid(beta * (mean_c - mean_r) - 0.3).mean(),
            "cpo": -logsigmoid(beta * (chosen - rejected)).mean() - 0.5 * chosen.sum() / counts_c.sum(),
        }[name]
        rewards = (beta * chosen, beta * rejected) if name == "cpo" else (beta * mean_c, beta * mean_r)
    assert not any(value.requires_grad for value in agent.loss(whole, agent.totals(whole))[1].values())
    row, _ = gradient_of(agent, whole)
    assert row["loss"] == pytest.approx(float(expected), rel=1e-9)
    assert row["rewards/chosen"] == pytest.approx(float(rewards[0].mean()), rel=1e-9)
    assert row["rewards/rejected"] == pytest.approx(float(rewards[1].mean()), rel=1e-9)
    assert row["rewards/margin"] == pytest.approx(float((rewards[0] - rewards[1]).mean()), rel=1e-9)
    assert row["rewards/accuracy"] == pytest.approx(float((rewards[0] > rewards[1]).double().mean()))
    assert row["log_probs/chosen"] == pytest.approx(float(chosen.mean()), rel=1e-9)
    assert row["log_probs/rejected"] == pytest.approx(float(rejected.mean()), rel=1e-9)


@pytest.mark.parametrize("positive", [False, True])
def test_the_loss_of_kto_is_the_formula(positive: bool) -> None:
    agent = moved("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    whole = agent.dataset
    own, other = whole.first(), whole.second()
    if positive:  # a random change makes every text less likely, and then z is 0
        optimizer = torch.optim.SGD(agent.policy.parameters(), lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            (-agent.policy(other.episodes).log_probs.sum() / len(other)).backward()
            optimizer.step()
        optimizer.zero_grad()
    ratios = [
        (agent.policy.log_prob(part.episodes) - agent.reference.log_prob(part.episodes)).sum(-1)
        for part in (own, other)
    ]
    z = max(0.0, float(ratios[1].mean()))
    assert (z > 0.5) == positive
    desirable = own["desirable"]
    gain = 1.5 * (1 - torch.sigmoid(0.3 * (ratios[0] - z)))
    loss = 0.5 * (1 - torch.sigmoid(0.3 * (z - ratios[0])))
    row, _ = gradient_of(agent, whole)
    assert row["loss"] == pytest.approx(float(torch.where(desirable, gain, loss).mean()), rel=1e-9)
    assert row["kto/baseline"] == pytest.approx(z, rel=1e-9)
    assert row["rewards/chosen"] == pytest.approx(0.3 * float(ratios[0][desirable].mean()), rel=1e-9)
    assert row["rewards/rejected"] == pytest.approx(0.3 * float(ratios[0][~desirable].mean()), rel=1e-9)
    right = ((ratios[0] > z) == desirable).double().mean()
    assert row["rewards/accuracy"] == pytest.approx(float(right))


def test_kto_is_right_about_a_response_by_its_distance_from_the_baseline() -> None:
    agent = moved("kto", beta=0.3)
    own = agent.dataset.first()
    with torch.no_grad():
        ratios = (agent.policy.log_prob(own.episodes) - agent.reference.log_prob(own.episodes)).sum(-1)
    ordered = ratios.sort().values
    z = (ordered[3] + ordered[4]) / 2
    desirable = ratios > z  # so that it is right about each of them
    assert all(bool(((ratios > other) != desirable).any()) for other in (-z, z / 0.3, 1 / z, 1.0))
    own.tensors |= {"baseline": z.expand(len(own)), "desirable": desirable}
    loss, stats = agent.loss(own, agent.totals(own))
    assert loss.requires_grad and not any(value.requires_grad for value in stats.values())
    assert float(stats["rewards/accuracy"]) == 1.0
    margin = 0.3 * (ratios[desirable].mean() - ratios[~desirable].mean())
    assert float(stats["rewards/margin"]) == pytest.approx(float(margin), rel=1e-9)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_texts_are_cut_at_max_length(name: str) -> None:
    rows = [
        {"prompt": "ab", "chosen": "abcd", "rejected": "dcba"},
        {"prompt": "c", "chosen": "d", "rejected": "bad"},
    ]
    found = {}
    for longest in (None, 4):
        agent: Any = make_agent(name, gpt2_config(), dataset=rows, tokenizer=TOKENIZER, max_length=longest)
        data = agent.dataset.first() if name == "kto" else agent.dataset
        found[longest] = int(data.episodes.lengths.max())
    assert found[4] == 4 < found[None]


def test_margin_and_label_of_the_data_count() -> None:
    agent = moved(
        "dpo", dataset=some_pairs(margin=torch.full((6,), 0.5), label=torch.full((6,), 0.75)), beta=0.3
    )
    chosen, rejected = sums(
        agent.policy.log_prob(agent.dataset.episodes) - agent.reference.log_prob(agent.dataset.episodes)
    )
    x = 0.3 * (chosen - rejected) - 0.5
    expected = -(0.75 * logsigmoid(x) + 0.25 * logsigmoid(-x)).mean()
    assert gradient_of(agent, agent.dataset)[0]["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_nothing_is_gained_before_the_first_step() -> None:
    agent = make_agent("dpo", gpt2_config(), dataset=some_pairs(), steps=1)
    row = agent.learn().history[0]
    assert row["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert (row["rewards/chosen"], row["rewards/margin"], row["rewards/accuracy"]) == (0.0, 0.0, 0.5)


# -- splits, forwards, references ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_precomputed_reference_changes_nothing_but_the_forwards(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, forwards = [], []
    for precompute in (False, True):
        options = {"precompute_reference": precompute} if name in ("dpo", "kto") else {}
        agent = make_agent(
            name, policy64(), dataset=some_pairs(), batch_size=3, epochs=2, learning_rate=1e-2, **options
        )
        calls = dict.fromkeys(("policy", "reference"), 0)
        forward = agent.policy.forward

        def counted(*args: Any, forward: Any = forward, calls: Any = calls, **kwargs: Any) -> Any:
            calls["policy"] += 1
            return forward(*args, **kwargs)

        agent.policy.forward = counted
        if agent.reference is not None:
            score = agent.reference.forward_model

            def scored(*args: Any, score: Any = score, calls: Any = calls, **kwargs: Any) -> Any:
                calls["reference"] += 1
                return score(*args, **kwargs)

            agent.reference.forward_model = scored
        history = agent.learn().history
        rows.append([{k: v for k, v in row.items() if not k.startswith("time/")} for row in history])
        forwards.append(calls)
    for plain, precomputed in zip(*rows, strict=True):
        assert precomputed == pytest.approx(plain, rel=1e-8, abs=1e-10)
    # Both sides of all pairs of a step in one forward of the policy.
    steps = len(rows[0])
    assert [calls["policy"] for calls in forwards] == [steps, steps]
    if name in ("dpo", "kto"):
        assert forwards[0]["reference"] >= steps and forwards[1]["reference"] == 1


def test_only_losses_that_need_a_reference_take_one() -> None:
    taken = {
        name: make_agent(name, gpt2_config(), dataset=some_pairs()).reference is not None for name in ALL
    }
    assert taken == {"dpo": True, "kto": True, "orpo": False, "simpo": False, "cpo": False}


@pytest.mark.parametrize("name", ["dpo", "kto"])
@pytest.mark.parametrize("options", [{"train_layers": 1}, {"lora": {"r": 2, "target_modules": ["c_attn"]}}])
def test_light_references_stay_where_the_policy_began(name: str, options: dict[str, Any]) -> None:
    agent = make_agent(
        name,
        gpt2_config(),
        dataset=some_pairs(),
        policy_kwargs=options,
        steps=4,
        learning_rate=1e-2,
        max_tokens_per_microbatch=60,
    )
    episodes = agent.dataset.episodes
    before = agent.policy.log_prob(episodes)
    first, *_, last = agent.learn().history
    assert agent.reference.mode != "copy"
    assert first["rewards/margin"] == pytest.approx(0.0, abs=1e-5)
    assert last["rewards/margin"] > 1e-3
    assert torch.allclose(agent.reference.log_prob(episodes), before, atol=1e-5)
    assert not torch.allclose(agent.policy.log_prob(episodes), before, atol=1e-2)


def test_agents_do_not_share_what_they_precomputed() -> None:
    batch = PairedBatch.of_pairs(some_pairs())
    agent = make_agent("dpo", gpt2_config(), dataset=batch, precompute_reference=True, steps=1)
    agent.learn()
    assert "reference" in agent.dataset.tensors and "reference" not in batch.tensors


# -- data ----------------------------------------------------------------------------------------------------


def test_paired_batches_keep_rows_together() -> None:
    batch = PairedBatch.of_pairs(some_pairs(margin=torch.arange(6.0)))
    picked = batch.select(torch.tensor([4, 1]))
    assert len(picked) == 2 and picked["margin"].tolist() == [4.0, 1.0, 4.0, 1.0]
    rows = [picked.episodes.input_ids[i, :n].tolist() for i, n in enumerate(picked.episodes.lengths)]
    pairs = some_pairs()
    for place, source in enumerate((4, 1)):
        for side, episodes in enumerate((pairs.chosen, pairs.rejected)):
            length = int(episodes.lengths[source])
            assert rows[2 * side + place] == episodes.input_ids[source, :length].tolist()
    seen = []
    for part in batch.microbatches(50):
        width = part.episodes.input_ids.shape[1]
        assert len(part) == 1 or 2 * len(part) * width <= 50
        seen += part["margin"][: len(part)].tolist()
    assert sorted(seen) == list(range(6))


def test_mismatched_responses_are_of_other_prompts() -> None:
    batch = EpisodeBatch.from_ids([[1], [1], [2], [3, 3]], [[11], [12, 12], [21], [31]])
    mixed = mismatched(batch)
    for row, prompt in enumerate(([1], [1], [2], [3, 3])):
        tokens = mixed.input_ids[row, : mixed.lengths[row]].tolist()
        assert tokens[: len(prompt)] == prompt
        assert tokens[len(prompt)] // 10 != prompt[0]
        assert mixed.action_mask[row].nonzero().flatten().tolist() == list(range(len(prompt), len(tokens)))
    assert sorted(mixed.response_lengths.tolist()) == [1, 1, 1, 2]
    with pytest.raises(ValueError, match="need at least 2 episodes, got 1"):
        mismatched(batch.select([0]))


def test_pairs_are_made_from_returns_on_the_same_prompt() -> None:
    logged = EpisodeBatch.from_ids(
        [[1], [2], [1], [1]], [[11], [21], [12], [13]], rewards=[0.0, 5.0, 1.0, 1.0]
    )
    pairs = pairs_from_returns(logged)
    found = {
        (int(c), int(r))
        for c, r in zip(pairs.chosen.input_ids[:, 1], pairs.rejected.input_ids[:, 1], strict=True)
    }
    assert found == {(12, 11), (13, 11)}
    assert len(pairs_from_returns(logged, per_prompt=1)) == 1
    with pytest.raises(ValueError, match="no two episodes on the same prompt differ in return"):
        pairs_from_returns(logged.select([1, 2, 3]))


def test_texts_in_the_ecosystems_columns() -> None:
    pairs = as_pairs([{"prompt": "a", "chosen": "b", "rejected": "cd"}], TOKENIZER)
    assert pairs.rejected.completion_texts(TOKENIZER) == ["cd"]
    ranked = as_pairs([{"prompt": "a", "completions": ["b", "c", "d"]}], TOKENIZER)
    assert len(ranked) == 3
    rows = [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "b", "completion": "cc", "label": False},
    ]
    episodes, desirable = as_labelled(rows, TOKENIZER)
    assert desirable.tolist() == [True, False] and len(episodes) == 2
    with_rewards = [{"prompt": "a", "completion": c, "reward": r} for c, r in (("b", 1.0), ("c", 0.0))]
    assert as_pairs(with_rewards, TOKENIZER).chosen.completion_texts(TOKENIZER) == ["b"]
    with pytest.raises(ValueError, match="must have the columns chosen and rejected, completions, or reward"):
        as_pairs([{"prompt": "a", "completion": "b"}], TOKENIZER)
    with pytest.raises(ValueError, match="needs tokenizer=, got None"):
        as_pairs([{"prompt": "a", "chosen": "b", "rejected": "c"}], None)


def test_responses_of_one_kind_or_without_actions_are_refused() -> None:
    rows = [{"prompt": p, "completion": "b", "label": True} for p in "ab"]
    with pytest.raises(ValueError, match="got desirable ones alone"):
        as_labelled(rows, TOKENIZER)
    empty = EpisodeBatch.from_ids([[1]], [[]])
    with pytest.raises(ValueError, match=r"rejected\[0\] must hold at least one action"):
        PairedBatch.of_pairs(PreferenceBatch(chosen=EpisodeBatch.from_ids([[1]], [[2]]), rejected=empty))


def test_settings_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"label_smoothing has no effect.*only with one of \['cdpo', 'robust'\]"
    ):
        DPOConfig(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\), got 0.5"):
        DPOConfig(loss="cdpo", label_smoothing=0.5)
    with pytest.raises(ValueError, match="loss must be one of"):
        DPOConfig(loss="dpo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta must be > 0, got 0"):
        SimPOConfig(beta=0)
    with pytest.raises(ValueError, match="desirable_weight must be >= 0"):
        KTOConfig(desirable_weight=-1)


# -- reward-weighted regression ------------------------------------------------------------------------------


def test_reward_weights_by_hand() -> None:
    returns = torch.tensor([0.0, math.log(2), math.log(5)])
    assert reward_weights(returns).tolist() == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert reward_weights(returns, max_weight=1.5).tolist() == pytest.approx([3 / 8, 6 / 8, 1.5])
    hot = reward_weights(returns, temperature=0.5)
    assert hot.tolist() == pytest.approx([3 / 30, 12 / 30, 75 / 30])
    scaled = reward_weights(10 * returns, standardize=True)
    assert scaled.tolist() == pytest.approx(reward_weights(returns / returns.std(correction=0)).tolist())
    assert reward_weights(torch.ones(3), standardize=True).tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_rwr_is_weighted_likelihood() -> None:
    data = EpisodeBatch.from_ids([[1], [2], [1]], [[11], [21, 22], [12]], rewards=[0.0, 3.0, 1.0])
    agent = make_agent("rwr", policy64(), dataset=data, temperature=0.7, max_grad_norm=None)
    assert isinstance(agent, RWR)
    weights = reward_weights(data.returns, temperature=0.7, standardize=True).double()
    nll = -agent.policy.log_prob(data).sum(-1)
    row, _ = gradient_of(agent, agent.batch(torch.arange(3)))
    assert row["loss"] == pytest.approx(float((weights * nll).sum() / 4), rel=1e-6)
    assert row["rwr/nll"] == pytest.approx(float(nll.sum() / 4), rel=1e-9)
    assert row["rwr/weight"] == pytest.approx(float(weights.mean()), rel=1e-6)
    totals = agent.totals(agent.batch(torch.arange(3)))
    parts = [agent.loss(agent.batch(torch.tensor(rows)), totals)[1] for rows in ([0], [1, 2])]
    fresh = -agent.policy.log_prob(data).sum() / 4
    assert sum(float(part["rwr/nll"]) for part in parts) == pytest.approx(float(fresh), rel=1e-9)
    assert not any(value.requires_grad for part in parts for value in part.values())
    bounded = make_agent("rwr", policy64(), dataset=data, max_weight=1.25)
    assert float(bounded.dataset["weights"].max()) == 1.25 < float(weights.max())
    centred = make_agent("rwr", policy64(), dataset=data, baseline="prompt", standardize=False)
    expected = reward_weights(torch.tensor([-0.5, 0.0, 0.5]))
    assert centred.dataset["weights"].tolist() == pytest.approx(expected.tolist())


# -- files and learning --------------------------------------------------------------------------------------


PAIRWISE: dict[str, dict[str, Any]] = {
    "dpo": {},
    # One response in seven is desirable.
    "kto": {"steps": 80, "beta": 0.5, "desirable_weight": 6.0},
    "orpo": {},
    "simpo": {},
    "cpo": {},
}


@pytest.mark.parametrize("name", PAIRWISE)
def test_rewards_come_to_tell_good_from_bad_responses(name: str) -> None:
    settings = {"steps": 40, "batch_size": 64, "learning_rate": 3e-3, **PAIRWISE[name]}
    result = textenv.train(name, task="probe-copy", loggers=(), eval_episodes=8, **settings)
    assert result.history[-1]["rewards/accuracy"] > 0.9
    assert result.history[-1]["rewards/margin"] > 0


def test_they_are_registered() -> None:
    assert {*PAIRWISE} <= set(agent_names())
    assert issubclass(KTO, textenv.agents.OfflineAgent)


def test_labels_of_episodes_are_flags_of_any_kind() -> None:
    episodes = EpisodeBatch.from_ids([[1], [2]], [[3], [4]])
    for labels in ([True, False], [1, 0.0], np.array([True, False]), torch.tensor([1, 0])):
        episodes.extras = {"label": labels}
        assert as_labelled(episodes, TOKENIZER)[1].tolist() == [True, False]
    for wrong in ("yes", None, 2, math.nan, [1], np.array([1, 0])):
        episodes.extras = {"label": [True, wrong]}
        with pytest.raises(ValueError, match="label must be true or false, got"):
            as_labelled(episodes, TOKENIZER)
