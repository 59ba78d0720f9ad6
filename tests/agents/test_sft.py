"""SFT and filtered behaviour cloning: which tokens and which episodes are learned from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import agents
from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.sft import SFT, FilteredBC, FilteredBCConfig, SFTConfig
from textenv.data.loading import load_columns, preferences_from_records
from textenv.episodes.batch import EpisodeBatch

EOS = TOKENIZER.eos_token_id


def episodes(count: int = 12, seed: int = 0) -> EpisodeBatch:
    """Random texts of unlike length, padded with EOS, returns 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int) -> list[int]:
        size = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(0, 4, (size,), generator=generator).tolist()

    return EpisodeBatch.from_ids(
        [draw(4) for _ in range(count)],
        [[*draw(8), EOS] for _ in range(count)],
        rewards=[float(i) for i in range(count)],
        pad_token_id=EOS,
    )


def make(dataset: Any = None, case: str = "sft", **settings: Any) -> Any:
    dataset = episodes() if dataset is None else dataset
    return agents.make(case, dataset=dataset, **{"steps": 5, "batch_size": 4, **settings})


@pytest.mark.parametrize("completion_only", [True, False])
def test_the_loss_is_the_global_mean_over_the_tokens_that_count(completion_only: bool) -> None:
    agent = make(completion_only=completion_only)
    data = episodes()
    batch = TrainingBatch(agent.dataset)
    loss, _ = agent.loss(batch, agent.totals(batch))
    total, tokens = 0.0, 0
    for row in range(len(data)):
        size, start = int(data.lengths[row]), int(data.prompt_lengths[row])
        ids = data.input_ids[row : row + 1, :size]
        log_probs = agent.policy.model(ids).logits[0].log_softmax(-1)
        for p in range(start if completion_only else 1, size):
            total -= float(log_probs[p - 1, ids[0, p]])
            tokens += 1
    assert loss.item() == pytest.approx(total / tokens, rel=1e-5)


def test_plain_language_modelling_leaves_the_given_data_alone() -> None:
    data = episodes()
    mask = data.action_mask.clone()
    agent = make(data, completion_only=False)
    assert torch.equal(data.action_mask, mask)
    assert int(agent.dataset.action_mask.sum()) == int(data.lengths.sum()) - len(data)


def test_eos_is_learned_although_it_is_the_padding() -> None:
    data = EpisodeBatch.from_ids([[0]] * 4, [[1, EOS]] * 4, pad_token_id=EOS)
    agent = make(data, steps=60)
    agent.learn()
    assert float(agent.policy.log_prob(data)[0, 2].exp()) > 0.9


@pytest.mark.parametrize(("percentile", "kept"), [(0.0, 12), (0.5, 6), (0.9, 2), (1.0, 1)])
def test_filtered_cloning_keeps_the_best(percentile: float, kept: int) -> None:
    agent = make(case="filtered-bc", percentile=percentile)
    assert agent.dataset.returns.tolist() == [float(i) for i in range(12 - kept, 12)]


def test_equal_returns_are_all_kept() -> None:
    data = episodes()
    data.rewards = data.at_last_action(torch.full((len(data),), 0.1))
    assert len(make(data, case="filtered-bc", percentile=0.9).dataset) == len(data)


def test_a_percentile_lies_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="percentile must be in"):
        FilteredBCConfig(percentile=90.0)
    assert SFTConfig().completion_only


def test_texts_rows_and_messages_are_data(byte_tokenizer: Any) -> None:
    config = tiny(byte_tokenizer, positions=64)
    rows: list[Any] = [
        [{"text": "abc"}, {"text": "abd"}],
        [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}],
        [
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
            {"messages": [{"role": "user", "content": "ha"}, {"role": "assistant", "content": "hu"}]},
        ],
    ]
    for data in rows:
        agent = SFT(config, dataset=data, tokenizer=byte_tokenizer, config=SFTConfig(steps=1, batch_size=2))
        assert agent.learn().history[0]["sft/nll"] > 0


def test_of_pairs_and_rankings_only_the_best_is_cloned(byte_tokenizer: Any) -> None:
    pairs = [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": "b", "chosen": "yes", "rejected": "no"},
    ]
    ranked = [{"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]} for row in pairs]
    batch = preferences_from_records(load_columns(pairs), byte_tokenizer)
    for data in (pairs, ranked, batch):
        episodes = as_demonstrations(data, byte_tokenizer)
        assert episodes.completion_texts(byte_tokenizer) == ["good", "yes"]
        assert episodes.prompt_texts(byte_tokenizer) == ["a", "b"]
    config = tiny(byte_tokenizer, positions=64)
    for cls in (SFT, FilteredBC):
        agent = cls(config, dataset=pairs, tokenizer=byte_tokenizer)
        assert agent.dataset.completion_texts(byte_tokenizer) == ["good", "yes"]
    renamed = load_columns(
        [{"q": "a", "better": "x", "rejected": "y"}],
        columns=[],
        rename={"better": "chosen", "q": "prompt"},
    )
    again = renamed.renamed({"chosen": "completion"})
    assert again.require("prompt", "completion").to_columns() == {
        "prompt": ["a"],
        "completion": ["x"],
        "rejected": ["y"],
    }
    with pytest.raises(ValueError, match="has a column 'rejected' already"):
        again.renamed({"completion": "rejected"})
    with pytest.raises(ValueError, match="has no column 'better'"):
        again.renamed({"better": "best"})
