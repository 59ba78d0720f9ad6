"""The random-walks task: the graph by hash, the score, and the reference table computed exactly."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward
from textenv.tasks import WalkGraph, exact_optimality, letter_tokenizer, make_task
from textenv.tasks.random_walks import LETTERS, walk_episodes

GRAPH = WalkGraph.from_seed(1000)


class Tabular(torch.nn.Module):
    """A causal LM that looks at the last letter alone: (V, V) probabilities."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("log_table", probabilities.log())

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.log_table[input_ids]})()


def cloned(walks) -> Tabular:
    """Behaviour cloning: the moves of these walks by frequency; unseen letters end the text."""
    counts = torch.zeros(24, 24, dtype=torch.float64)
    for walk in walks:
        for here, there in itertools.pairwise(walk):
            counts[LETTERS.index(here), LETTERS.index(there)] += 1
    counts[counts.sum(-1) == 0, 22] = 1
    return Tabular(counts / counts.sum(-1, keepdim=True))


def uniform() -> Tabular:
    table = torch.zeros(24, 24, dtype=torch.float64)
    table[21:, 22] = 1
    for node, following in enumerate(GRAPH.successors):
        table[node, list(following)] = 1 / len(following)
    return Tabular(table)


def shortest() -> Tabular:
    table = torch.zeros(24, 24, dtype=torch.float64)
    table[[0, 21, 22, 23], 22] = 1
    length = {**GRAPH.shortest, "a": 1}
    for letter in GRAPH.starts:
        best = min(GRAPH.successors[LETTERS.index(letter)], key=lambda node: length[LETTERS[node]])
        table[LETTERS.index(letter), best] = 1
    return Tabular(table)


def test_walks_match_the_hash_and_the_published_facts():
    assert GRAPH.sha256 == "69d12e9cd7e4c474aa6f5d94862438390508d55e299c207c9d0d2cb453d00fd3"
    assert GRAPH.walks[:5] == ("sda", "fda", "ebjnbdtkna", "jnbjna", "lbusdtkbui")
    assert len(GRAPH.walks) == 1000 and len(set(GRAPH.walks)) == 722
    assert sum(len(following) for following in GRAPH.successors[1:]) == 51
    assert GRAPH.successors[0] == (0,)
    scores = [GRAPH.optimality(walk) for walk in GRAPH.walks]
    assert np.mean(scores) == pytest.approx(0.3515, abs=5e-5)
    assert np.mean(np.array(scores) == 1) == pytest.approx(0.184)
    assert np.mean([GRAPH.length(walk) is not None for walk in GRAPH.walks]) == pytest.approx(0.56)


def test_shortest_lengths():
    expected = "b3 c4 d2 e4 f3 g5 h5 i3 j3 k3 l4 m4 n2 o5 p4 q4 r4 s3 t4 u4"
    assert " ".join(f"{letter}{length}" for letter, length in GRAPH.shortest.items()) == expected
    assert GRAPH.starts == tuple(LETTERS[1:])


@pytest.mark.parametrize(
    ("text", "length", "score"),
    [
        ("sda", 3, 1.0),
        ("da", 2, 1.0),
        ("sdazzz", 3, 1.0),  # after the goal nothing counts
        ("sdtkna", 6, 4 / 7),
        ("sd", None, 0.0),
        ("sxa", None, 0.0),
        ("sa", None, 0.0),  # no such edge
        ("s<bos>da", None, 0.0),
        ("", None, 0.0),
        ("a", 1, 0.0),
        ("ebjnbdtkna", 10, 0.0),  # ten nodes are worth nothing
        ("jnbjnbjnbjna", 12, 0.0),
    ],
)
def test_score(text, length, score):
    assert GRAPH.length(text) == length
    assert GRAPH.optimality(text) == pytest.approx(score)


@pytest.mark.parametrize(
    ("policy", "optimality"),
    [
        pytest.param(uniform(), 0.346, id="uniform"),
        pytest.param(cloned(GRAPH.walks), 0.355, id="all"),
        pytest.param(cloned([w for w in GRAPH.walks if GRAPH.optimality(w) > 0]), 0.709, id="scoring"),
        pytest.param(cloned([w for w in GRAPH.walks if GRAPH.optimality(w) == 1]), 0.950, id="optimal"),
        pytest.param(shortest(), 1.0, id="optimum"),
    ],
)
def test_reference_table(policy, optimality):
    assert exact_optimality(policy).optimality == pytest.approx(optimality, abs=5e-4)


def test_best_walk_in_the_data_per_start():
    best = {start: max(GRAPH.optimality(w) for w in GRAPH.walks if w[0] == start) for start in GRAPH.starts}
    assert np.mean(list(best.values())) == pytest.approx(0.992, abs=5e-4)
    assert [start for start, score in best.items() if score < 1] == ["m"]


def test_values_of_the_optimum():
    values = exact_optimality(shortest())
    assert values.goal_rate == pytest.approx(1)
    assert values.optimal_rate == pytest.approx(1)
    assert values.per_start == pytest.approx(dict.fromkeys(GRAPH.starts, 1.0))


def test_exact_value_agrees_with_sampling_for_a_policy_with_memory():
    """A language model sees the whole prefix, so compare with walks sampled from a random one."""
    torch.manual_seed(0)
    tokenizer = letter_tokenizer(LETTERS)
    config = GPT2Config(vocab_size=24, n_positions=16, n_layer=1, n_embd=16, n_head=2, initializer_range=0.5)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # make the start "d" worth looking at: a is likely early on
        model.transformer.wpe.weight[0] += 3 * model.transformer.wte.weight[0]
    exact = exact_optimality(model)
    assert model.training  # left as it was
    model.eval()
    texts = torch.full((4096, 1), LETTERS.index("d"))
    for _ in range(9):
        with torch.no_grad():
            logits = model(texts).logits[:, -1]
        texts = torch.cat([texts, torch.multinomial(logits.softmax(-1), 1)], 1)
    scores = np.array([GRAPH.optimality(text) for text in tokenizer.batch_decode(texts)])
    error = scores.std() / np.sqrt(len(scores))
    assert error > 0
    assert exact.per_start["d"] == pytest.approx(scores.mean(), abs=4 * error)


def test_the_three_kinds_of_policy_agree():
    model = uniform()
    expected = exact_optimality(model)

    def log_prob(episodes: EpisodeBatch) -> torch.Tensor:
        logits = model(input_ids=episodes.input_ids[:, :-1], attention_mask=None).logits.log_softmax(-1)
        found = logits.gather(-1, episodes.input_ids[:, 1:, None]).squeeze(-1)
        return torch.nn.functional.pad(found, (1, 0)).masked_fill(~episodes.action_mask, 0)

    assert exact_optimality(log_prob).per_start == pytest.approx(expected.per_start)

    def holey(episodes: EpisodeBatch) -> torch.Tensor:
        return torch.where(episodes.action_mask, log_prob(episodes), torch.nan)

    assert exact_optimality(holey).per_start == pytest.approx(expected.per_start)
    policy = type("Policy", (), {"log_prob": staticmethod(log_prob)})()
    assert exact_optimality(policy, batch_size=100).per_start == pytest.approx(expected.per_start)


def test_temperature_and_extra_logits():
    """Hotter is closer to uniform over all letters; logits beyond the vocabulary are cut off."""

    class Padded(Tabular):
        def forward(self, input_ids, attention_mask):
            output = super().forward(input_ids, attention_mask)
            output.logits = torch.nn.functional.pad(output.logits, (0, 40), value=9.0)
            return output

    table = shortest().log_table.exp() * 0.9 + 0.1 / 24
    cold, warm = (exact_optimality(Padded(table), temperature=t).optimality for t in (0.1, 1.0))
    assert cold == pytest.approx(1, abs=1e-6)
    assert 0.5 < warm < 0.9
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        exact_optimality(shortest(), temperature=0)
    with pytest.raises(TypeError, match="got int"):
        exact_optimality(3)


def test_bad_seeds_are_refused():
    with pytest.raises(ValueError, match=r"seed 42 .* choose another seed, for example 1000"):
        WalkGraph.from_seed(42)
    bad = 0
    for seed in range(200):
        try:
            WalkGraph.from_seed(seed)
        except ValueError:
            bad += 1
    assert bad == 36
    with pytest.raises(ValueError, match="seed 42"):
        make_task("random-walks").build(seed=42)


def test_demonstrations():
    data = make_task("random-walks").build()
    episodes = data.demonstrations
    assert len(episodes) == 1000 and episodes.input_ids.shape[1] == 11  # one letter, nine more, EOS
    episodes.validate()
    assert bool(episodes.terminated.all())
    assert int(episodes.response_lengths.max()) == data.max_new_tokens == 10
    assert episodes.prompt_lengths.unique().tolist() == [1]
    assert episodes.returns.mean().item() == pytest.approx(0.3515, abs=5e-5)
    last = episodes.input_ids.gather(1, episodes.last_action[:, None]).squeeze(-1)
    assert last.unique().tolist() == [data.tokenizer.eos_token_id]
    term = make_reward(data.rewards[0])
    term.tokenizer = data.tokenizer
    assert torch.equal(term.score(episodes), episodes.returns)
    assert [data.prompts[i] for i in episodes.prompt_index[:3]] == ["s", "f", "e"]
    assert list(data.texts) == list(GRAPH.walks)


def test_reward_reads_special_tokens():
    tokenizer = letter_tokenizer(LETTERS)
    term = make_reward("random-walks-optimality")
    term.tokenizer = tokenizer
    s, d, a, bos, eos, pad = (*(LETTERS.index(x) for x in "sda"), 21, 22, 23)
    responses = [[d, a, eos], [d, a], [d, eos], [eos], [bos, d, a], [d, pad, a], [d, a, bos]]
    batch = EpisodeBatch.from_ids([[s]] * len(responses), responses)
    assert term.score(batch).tolist() == [1, 1, 0, 0, 0, 0, 1]


def test_model_and_tokenizer():
    data = make_task("random-walks").build()
    assert len(data.tokenizer) == 24
    config = data.model_config()
    assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size) == (6, 144, 12, 24)
    assert {config.resid_pdrop, config.embd_pdrop, config.attn_pdrop} == {0}
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    assert 1.6e6 < sum(p.numel() for p in model.parameters()) < 1.7e6
    assert walk_episodes(GRAPH, data.tokenizer, ["sda"]).input_ids.tolist() == [[18, 3, 0, 22]]


def test_environment_pays_optimality():
    envs = gym.make_vec("TextRLHF-v0", num_envs=2, task="random-walks")
    observation, _ = envs.reset(seed=3)
    policy = shortest().log_table.argmax(-1)
    total, episodes = 0.0, 0
    while episodes < 20:
        last = observation["attention_mask"].sum(-1).long() - 1
        here = observation["input_ids"].gather(1, last[:, None]).squeeze(-1)
        observation, rewards, terminated, truncated, _ = envs.step(policy[here])
        total += float(rewards.sum())
        episodes += int((terminated | truncated).sum())
        assert not truncated.any()
    assert total == pytest.approx(episodes)


def test_split_is_checked():
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', got 'test'"):
        make_task("random-walks").build("test")
