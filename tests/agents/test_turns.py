"""Agents on episodes of several turns: rewards of replies reach the losses, foreign tokens do not."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

import textenv
from tests.helpers.models import tiny
from tests.helpers.partners import TALKER, Failing, Guess, Repeat, Slow
from textenv.agents.data.preferences import mismatched
from textenv.agents.ilql import q_and_v
from textenv.agents.make import make_agent
from textenv.envs.turns import STOP_REASONS
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.episodes.turns import turn_ends, turn_starts

ONLINE: dict[str, dict[str, Any]] = {
    "a2c": {"advantage": "turn-gae"},
    "grpo": {},
    "nlpo": {"mask_min_tokens": 2},
    "ppo": {"gamma": 0.5, "discount": "turn", "bootstrap_truncated": True},
    "reinforce": {},
    "reinforce++": {"whiten_advantages": False},
    "rloo": {},
}


def make_envs(samples: int = 1, num_envs: int = 8, **changes: Any) -> Any:
    made = {"tokenizer": TALKER, "rewards": [], "max_turns": 4, "max_turn_tokens": 2, "partner": Guess}
    return gym.make_vec("TextRLHF-v0", num_envs, **{**made, "samples_per_prompt": samples, **changes})


def make(name: str, envs: Any = None, **options: Any) -> Any:
    settings = {"learning_rate": 1e-2, "policy_kwargs": {"dtype": torch.float64}, **options}
    if envs is not None:
        settings |= {"envs": envs}
    return make_agent(name, tiny(TALKER, positions=64), **settings)


def rollout(agent: Any) -> Any:
    agent.iteration = 1
    episodes = agent.collect()
    agent.score(episodes)
    return agent.advantages(episodes)


@pytest.fixture(scope="module")
def log() -> EpisodeBatch:
    """48 logged games, of one to four turns."""
    agent = make("reinforce", make_envs())
    return textenv.collect(make_envs(), agent.policy, 48, seed=7)


def turns_of(episodes: EpisodeBatch, row: int) -> list[list[int]]:
    """The columns of each turn of an episode."""
    found: list[list[int]] = []
    for column in episodes.action_mask[row].nonzero().flatten().tolist():
        if found and found[-1][-1] == column - 1:
            found[-1].append(column)
        else:
            found.append([column])
    return found


def to_go(episodes: EpisodeBatch, rewards: Tensor, gamma: float, *, turn: bool) -> Tensor:
    """Discounted returns to go, one token at a time."""
    returns = torch.zeros_like(rewards)
    for row in range(len(episodes)):
        following = 0.0
        for columns in reversed(turns_of(episodes, row)):
            for column in reversed(columns):
                factor = gamma if not turn or column == columns[-1] else 1.0
                following = float(rewards[row, column]) + factor * following
                returns[row, column] = following
    return returns


# -- online --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONLINE)
def test_foreign_tokens_have_no_advantage_and_no_weight_in_the_loss(name: str) -> None:
    envs = make_envs(4 if name in ("grpo", "rloo") else 1)
    agent = make(name, envs, episodes_per_iteration=16, entropy_coef=0.01, **ONLINE[name])
    batch = rollout(agent)
    mask = batch.mask
    foreign = batch.episodes.attention_mask & ~mask
    assert int((turn_starts(mask)).sum(-1).max()) > 2 and bool(foreign[:, 4:].any())
    for tensor in batch.tensors.values():
        assert not tensor[~mask].any()
    assert bool((batch.episodes.rewards != 0)[turn_ends(mask)].any())
    terms = {"partner", "kl", "raw/kl"} if agent.config.kl_placement == "reward" else {"partner"}
    assert set(batch.episodes.reward_terms) == terms
    gradients = []
    for spoilt in (False, True):
        if spoilt:
            batch.tensors = {k: torch.where(mask, v, torch.nan) for k, v in batch.tensors.items()}
        agent.policy.zero_grad()
        agent.loss(batch, agent.totals(batch))[0].backward()
        gradients.append([p.grad.clone() for p in agent.parameters if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rewards_of_replies_reach_the_advantages() -> None:
    agent = make("reinforce", make_envs(), episodes_per_iteration=16, gamma=0.5, baseline="none", kl_coef=0.0)
    batch = rollout(agent)
    episodes = batch.episodes
    torch.testing.assert_close(batch["advantages"], to_go(episodes, episodes.rewards, 0.5, turn=False))
    agent.config = agent.config.replace(discount="turn")
    found = agent.advantages(episodes)["advantages"]
    torch.testing.assert_close(found, to_go(episodes, episodes.rewards, 0.5, turn=True))
    said = [sum(reply["reward"] for reply in row) for row in episodes.extras["replies"]]
    assert episodes.returns.tolist() == pytest.approx(said)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_groups_share_a_world(name: str) -> None:
    agent = make(name, make_envs(4), episodes_per_iteration=16, kl_coef=0.0)
    batch = rollout(agent)
    # All episodes have the same prompt, but the partner drew a number per group.
    assert batch.episodes.prompt_index.unique().tolist() == [0]
    returns = batch.episodes.returns.double().view(4, 4)
    expected = returns - (returns.sum(-1, keepdim=True) - returns) / 3
    if name == "grpo":
        expected = (returns - returns.mean(-1, keepdim=True)) / (returns.std(-1, keepdim=True) + 1e-4)
    found = batch["advantages"][turn_starts(batch.mask) & (batch.mask.cumsum(-1) == 1)]
    torch.testing.assert_close(found.double(), expected.flatten(), rtol=1e-5, atol=1e-6)


def test_samples_are_selected_per_world() -> None:
    agent = make("rft", make_envs(4), episodes_per_iteration=16, samples_per_prompt=4)
    agent.iteration = 1
    episodes = agent.collect()
    agent.score(episodes)
    agent.advantages(episodes)
    assert agent.pool["prompt"].tolist() == [i // 4 for i in range(16)]
    centred = make("ppo", make_envs(4), episodes_per_iteration=16, center_by_prompt=True, kl_coef=0.0)
    centred.config = centred.config.replace(whiten_advantages=False)
    batch = rollout(centred)
    for group in batch["advantages"].view(4, 4, -1):
        assert float(group.sum()) == pytest.approx(0.0, abs=1e-5)


def test_a_critic_of_turns_is_trained_at_their_first_tokens() -> None:
    agent = make("ppo", make_envs(), episodes_per_iteration=16, advantage="turn-gae", value_clip_range=None)
    batch = rollout(agent)
    starts = turn_starts(batch.mask)
    values = agent.policy(batch.episodes, values=True).values
    expected = ((values - batch["returns"])[starts] ** 2).mean() / 2
    _, stats = agent.loss(batch, agent.totals(batch))
    torch.testing.assert_close(stats["value/loss"], expected.detach())
    assert not batch["returns"][~starts].any()
    # The advantage of a turn is at all its tokens.
    for row in range(len(batch)):
        for columns in turns_of(batch.episodes, row):
            assert batch["advantages"][row, columns].unique().numel() == 1


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_packing_gives_the_same_loss(name: str) -> None:
    losses = []
    for packing in (False, True):
        agent = make(name, make_envs(), episodes_per_iteration=16, packing=packing)
        batch = rollout(agent)
        losses.append(agent.loss(batch, agent.totals(batch))[0].detach())
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("settings", [{}, {"advantage": "turn-gae"}])
def test_ppo_reaches_the_optimum_of_a_game_of_two_turns(settings: dict[str, Any]) -> None:
    envs = make_envs(num_envs=64, partner=Repeat, max_turns=2, max_turn_tokens=1)
    options = {"episodes_per_iteration": 64, "iterations": 20, "epochs": 4, "minibatches": 1, "kl_coef": 0.0}
    model = tiny(TALKER, positions=16, width=16)
    agent = make_agent(
        "ppo", model, envs=envs, learning_rate=1e-2, value_clip_range=None, **options, **settings
    )
    rows = agent.learn().history
    assert rows[0]["objective/reward"] < 0.4
    assert sum(row["objective/reward"] for row in rows[-3:]) / 3 > 0.95


def test_metrics_of_turns() -> None:
    envs = make_envs(partner=type("Ending", (Failing,), {"on_error": "end"}))
    agent = make("reinforce", envs, episodes_per_iteration=16, iterations=1, eval_episodes=8)
    row = agent.learn().history[0]
    extras = agent.last_batch.episodes.extras
    assert row["rollout/turns"] == sum(map(len, extras["turns"])) / 16 >= 1
    assert row["rollout/partner_errors"] == sum(extras["partner_errors"]) > 0
    assert row["rollout/partner_timeouts"] == 0
    shares = {name: row[f"rollout/stop_reason/{name}"] for name in STOP_REASONS}
    assert shares["error"] == extras["stop_reason"].count("error") / 16 > 0
    assert sum(shares.values()) == pytest.approx(1.0)
    assert 0 < row["rollout/active"] <= 1 and 0 < row["time/waiting"] < row["time/rollout"]
    assert {"rollout/turns", "rollout/partner_errors"} <= agent.evaluate(envs, 8).metrics.keys()


def test_rows_that_wait_are_not_active() -> None:
    active = {}
    for partner in (Guess, Slow):
        agent = make("reinforce", make_envs(partner=partner), episodes_per_iteration=16, iterations=1)
        row = agent.learn().history[0]
        active[partner] = row["rollout/active"]
        agent.envs.close()
    assert active[Slow] < active[Guess]
    one_turn = make(
        "reinforce",
        make_envs(partner=None, max_turns=None, max_turn_tokens=None, max_new_tokens=4, prompts=["1", "2"]),
        episodes_per_iteration=16,
        iterations=1,
    )
    assert not any(name.startswith(("rollout/", "time/waiting")) for name in one_turn.learn().history[0])


# -- offline -------------------------------------------------------------------------------------------------


def plain_log_probs(policy: Any, episodes: EpisodeBatch) -> Tensor:
    """(B, L) log-probs of all tokens, by the model's own forward pass."""
    logits = policy.model(input_ids=episodes.input_ids, attention_mask=episodes.attention_mask.long()).logits
    logits = policy.legality.apply(logits, episodes.turn_steps) if policy.legality is not None else logits
    found = logits[:, :-1].log_softmax(-1).gather(-1, episodes.input_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(found, (1, 0))


def weighted_nll(agent: Any, batch: Any) -> Tensor:
    """The loss of SFT, filtered BC and RWR, written out."""
    log_probs, mask = plain_log_probs(agent.policy, batch.episodes), batch.mask
    weights = batch.tensors.get("weights", torch.ones(len(batch)))
    return -(log_probs * weights[:, None])[mask].sum() / mask.sum()


@pytest.mark.parametrize("name", ["sft", "filtered-bc", "rwr"])
@pytest.mark.parametrize("packing", [False, True])
def test_cloning_learns_from_the_turns_of_the_policy_alone(
    name: str, packing: bool, log: EpisodeBatch
) -> None:
    options: dict[str, Any] = {} if name == "rwr" else {"packing": packing}
    if name == "filtered-bc":
        options["percentile"] = 0.5
    agent = make(name, dataset=log, tokenizer=TALKER, steps=1, batch_size=16, **options)
    batch = agent.batch(torch.arange(16))
    assert int(turn_starts(batch.mask).sum(-1).max()) > 1
    loss, _ = agent.loss(batch, agent.totals(batch))
    expected = weighted_nll(agent, batch)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, agent.parameters, retain_graph=True)
    for a, b in zip(ours, torch.autograd.grad(expected, agent.parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("discount", ["token", "turn"])
@pytest.mark.parametrize("name", ["ilql", "monte-carlo"])
def test_targets_of_values_skip_the_replies(name: str, discount: str, log: EpisodeBatch) -> None:
    agent = make(name, dataset=log, tokenizer=TALKER, steps=1, gamma=0.5, discount=discount)
    batch = agent.batch(torch.arange(16))
    with torch.no_grad():
        for parameter in agent.policy.heads.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    episodes, found = batch.episodes, q_and_v(agent.policy, batch)
    targets = to_go(episodes, episodes.rewards.double(), 0.5, turn=discount == "turn")
    if name == "ilql":
        targets = torch.zeros_like(found.values)
        for row in range(len(episodes)):
            columns = [column for turn in turns_of(episodes, row) for column in turn]
            for column, after in zip(columns, [*columns[1:], None], strict=True):
                factor = 1.0 if discount == "turn" and after == column + 1 else 0.5
                value = 0.0 if after is None else factor * float(found.values[row, after].detach())
                targets[row, column] = float(episodes.rewards[row, column]) + value
    errors = sum(((q.detach() - targets)[batch.mask] ** 2).mean() for q in found.q)
    stats = agent.loss(batch, agent.totals(batch))[1]
    prefix = "ilql" if name == "ilql" else "monte_carlo"
    torch.testing.assert_close(float(stats[f"{prefix}/q_loss"]), float(errors), rtol=1e-5, atol=1e-8)
    assert int(turn_starts(batch.mask).sum(-1).max()) > 1


def test_preferences_compare_the_turns_of_the_policy_alone(log: EpisodeBatch) -> None:
    pairs = PreferenceBatch(chosen=log.select(slice(0, 8)), rejected=log.select(slice(8, 16)))
    agent = make("dpo", dataset=pairs, tokenizer=TALKER, steps=1, beta=0.5)
    with torch.no_grad():
        for parameter in agent.parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    batch = agent.batch(torch.arange(8))
    episodes = batch.episodes
    ratio = plain_log_probs(agent.policy, episodes) - agent.reference.log_prob(episodes)
    ratio = torch.where(episodes.action_mask, ratio, 0.0).sum(-1)
    expected = -torch.nn.functional.logsigmoid(0.5 * (ratio[:8] - ratio[8:])).mean()
    torch.testing.assert_close(agent.loss(batch, agent.totals(batch))[0], expected)


def test_mismatched_responses_keep_their_replies(log: EpisodeBatch) -> None:
    found = mismatched(log.select(slice(0, 12)))
    said = {tuple(ids[mask].tolist()) for ids, mask in zip(log.input_ids, log.action_mask, strict=True)}
    for ids, mask in zip(found.input_ids, found.action_mask, strict=True):
        assert tuple(ids[mask].tolist()) in said
    assert int(turn_starts(found.action_mask).sum()) == int(turn_starts(log.action_mask[:12]).sum())


@pytest.mark.parametrize("name", ["ilql", "monte-carlo", "rwr", "filtered-bc", "sft", "dpo", "kto"])
def test_offline_agents_take_logged_games(name: str, log: EpisodeBatch) -> None:
    agent = make(name, dataset=log, tokenizer=TALKER, steps=2, batch_size=8)
    rows = agent.learn().history
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
