"""The probe tasks: hand-worked rewards, and an optimum that the best policy reaches and nothing exceeds."""

import itertools

import pytest
import torch

from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward
from textenv.tasks import make_task, task_names

PROBES = [name for name in task_names() if name.startswith("probe-")]


def reward_of(data):
    term = make_reward(data.rewards[0])
    term.tokenizer = data.tokenizer
    return term


def parts(data, prompt, responses):
    """(B, T) what each token of the responses earns, after one prompt."""
    ids = [data.tokenizer(response)["input_ids"] for response in responses]
    prompt_ids = data.tokenizer(prompt)["input_ids"]
    batch = EpisodeBatch.from_ids([prompt_ids] * len(ids), ids)
    return reward_of(data).parts(batch)[:, len(prompt_ids) :]


def test_there_are_five():
    assert PROBES == ["probe-constant", "probe-copy", "probe-count", "probe-end", "probe-longest"]


@pytest.mark.parametrize(
    ("name", "prompt", "response", "expected"),
    [
        ("probe-constant", "a", "bbab", [0.25, 0.25, 0, 0.25]),
        ("probe-constant", "b", "ab<eos>", [0, 0.25, 0]),
        ("probe-copy", "abc", "b", [1]),
        ("probe-copy", "acb", "b", [0]),
        ("probe-count", "2", "12<eos>", [1 / 3, 1 / 3, 1 / 3]),
        ("probe-count", "2", "123", [1 / 3, 1 / 3, 0]),
        ("probe-count", "3", "1<eos>", [1 / 4, 0]),
        ("probe-count", "3", "2123", [0, 0, 0, 0]),
        ("probe-count", "1", "12<eos>", [1 / 2, 0, 0]),
        ("probe-longest", "a", "ab<pad><eos>", [1 / 8, 1 / 8, 1 / 8, 0]),
        ("probe-end", "a", "<eos>", [1]),
        ("probe-end", "a", "bb<eos>", [0, 0, 6 / 8]),
        ("probe-end", "a", "bbbbbbbb", [0] * 8),
    ],
)
def test_rewards_by_hand(name, prompt, response, expected):
    found = parts(make_task(name).build(), prompt, [response])
    assert found.tolist() == [pytest.approx(expected)]


BEST = {
    "probe-constant": lambda prompt: "bbbb",
    "probe-copy": lambda prompt: prompt[1],
    "probe-count": lambda prompt: "12345"[: int(prompt)] + "<eos>",
    "probe-end": lambda prompt: "<eos>",
    "probe-longest": lambda prompt: "a" * 8,
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", PROBES)
def test_best_responses_earn_the_optimum(name, per_token):
    data = make_task(name).build(per_token=per_token)
    ids = [data.tokenizer(prompt)["input_ids"] for prompt in data.prompts]
    best = [data.tokenizer(BEST[name](prompt))["input_ids"] for prompt in data.prompts]
    assert max(len(response) for response in best) <= data.max_new_tokens
    term = reward_of(data)
    score = term.score(EpisodeBatch.from_ids(ids, best))
    assert term.per_token is per_token and score.dim() == 1 + per_token
    assert torch.allclose(score.reshape(len(ids), -1).sum(-1), torch.tensor(data.optimum))


@pytest.mark.parametrize(("name", "kwargs"), [("probe-constant", {}), ("probe-count", {"highest": 3})])
def test_nothing_earns_more_than_the_optimum(name, kwargs):
    """All responses of three letters and EOS, written out."""
    data = make_task(name).build(**kwargs)
    eos = data.tokenizer.eos_token_id
    legal = [token for token in range(len(data.tokenizer)) if token != eos]
    responses = [[*r, eos] for n in range(4) for r in itertools.product(legal, repeat=n)]
    prompt = data.tokenizer(data.prompts[-1])["input_ids"]
    score = reward_of(data).score(EpisodeBatch.from_ids([prompt] * len(responses), responses))
    assert score.max() <= data.optimum
    assert score.max() == pytest.approx(0.75 if name == "probe-constant" else 1)


@pytest.mark.parametrize("name", PROBES)
def test_per_token_rewards_depend_on_the_past_alone(name):
    data = make_task(name).build(per_token=True)
    episodes = data.demonstrations
    full = reward_of(data).score(episodes)
    for length in range(1, int(episodes.response_lengths.max())):
        prompt = int(episodes.prompt_lengths[0])
        rows = (episodes.response_lengths > length).nonzero().squeeze(-1)
        keep = prompt + length
        prefix = EpisodeBatch.from_ids(
            episodes.input_ids[rows, :prompt].tolist(), episodes.input_ids[rows, prompt:keep].tolist()
        )
        assert torch.equal(reward_of(data).score(prefix), full[rows, :keep])


@pytest.mark.parametrize("name", PROBES)
def test_demonstrations_are_random_episodes_with_rewards(name):
    data = make_task(name).build()
    episodes = data.demonstrations.validate()
    assert len(episodes) == 512
    assert torch.equal(episodes.terminated, ~episodes.truncated)
    assert bool((episodes.response_lengths <= data.max_new_tokens).all())
    assert torch.allclose(reward_of(data).score(episodes), episodes.returns)
    assert episodes.returns.max() > episodes.returns.min()
    dense = make_task(name).build(per_token=True).demonstrations
    assert torch.equal(dense.input_ids, episodes.input_ids)
    assert torch.allclose(dense.returns, episodes.returns)


@pytest.mark.parametrize("name", PROBES)
def test_models_are_tiny(name):
    from transformers import AutoModelForCausalLM

    data = make_task(name).build()
    model = AutoModelForCausalLM.from_config(data.model_config())
    assert sum(p.numel() for p in model.parameters()) < 150_000
    ids = data.tokenizer(data.prompts[0], return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], len(data.tokenizer))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("probe-constant", {"target": "z"}, "target must be one of 'a', 'b', 'c', 'd', got 'z'"),
        ("probe-copy", {"position": 3}, "position must be one of 0, 1, 2, got 3"),
        ("probe-count", {"highest": 10}, "highest must be one of .*, got 10"),
        ("probe-end", {"budget": 0}, "budget must be >= 1, got 0"),
        ("probe-longest", {"letters": 1}, "letters must be one of .*, got 1"),
    ],
)
def test_bad_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_task(name).build(**kwargs)
