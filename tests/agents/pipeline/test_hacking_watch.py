"""The reward-hacking watch: slopes and tests, warnings, limits, the best by the judge, resume."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.reward_helpers import config, episodes, vector_env
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.agents.pipeline.hacking_watch import RewardHackingWatch, rises, slopes
from textenv.agents.ppo import PPO, PPOConfig
from textenv.rewards.wrappers import wrap_reward

COUNT = 40


class Watched:
    """What the watch asks of an agent."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir, self.iteration, self.saved = run_dir, 0, []
        self.eval_envs = vector_env()

    def save(self, path: Path) -> None:
        self.saved.append((self.iteration, path.name))


def evaluation(
    proxy: float, seed: int, *, kl: float = 1.0, terms: dict[str, float] | None = None
) -> Evaluation:
    """Episodes whose rewards scatter around ``proxy``."""
    batch = episodes(["a"] * COUNT)
    noise = torch.randn(COUNT, generator=torch.Generator().manual_seed(seed))
    values = {"score": proxy, **(terms or {})}
    batch.reward_terms = {name: batch.at_last_action(mean + 0.1 * noise) for name, mean in values.items()}
    batch.rewards = sum(batch.reward_terms.values(), torch.zeros(()))
    metrics = {"return/mean": float(batch.returns.mean()), "objective/kl": kl, "text/repetition": 0.0}
    return Evaluation(metrics=metrics, episodes=batch, samples=[{"metrics": {}}])


class Judge:
    """A judge with a given mean, with scatter."""

    def __init__(self) -> None:
        self.mean, self.seed = 0.0, 0

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        self.seed += 1
        noise = torch.randn(len(completions), generator=torch.Generator().manual_seed(1000 + self.seed))
        return (self.mean + 0.1 * noise).tolist()


def play(
    watch: RewardHackingWatch, judge: Judge, course: list[tuple[float, float]], **options: Any
) -> Watched:
    agent = Watched(options.pop("run_dir", None))
    for proxy, judged in course:
        judge.mean = judged
        found = evaluation(proxy, agent.iteration, **options)
        watch.on_evaluation(agent, found)
        agent.last = found
        agent.iteration += 1
    return agent


def test_slopes_by_hand() -> None:
    rows = [[0.0, 5.0], [1.0, 3.0], [2.0, 4.0], [3.0, 2.0]]
    assert slopes(rows).tolist() == pytest.approx([1.0, (-1.5 * 5 - 0.5 * 3 + 0.5 * 4 + 1.5 * 2) / 5])


def test_rising_is_a_matter_of_evidence() -> None:
    assert rises(torch.tensor([1.0, 1.1, 0.9, 1.0]), 0.05)
    assert not rises(torch.tensor([1.0, -1.1, 0.9, -0.7]), 0.05)
    assert rises(torch.full((5,), 0.3), 0.05) and not rises(torch.zeros(5), 0.05)


def test_it_warns_once_where_reward_and_judge_part() -> None:
    judge = Judge()
    watch = RewardHackingWatch(judge, baseline=False)
    with pytest.warns(UserWarning, match="reward and judge diverge at iteration 3"):
        agent = play(watch, judge, [(0, 0), (0.1, 0.2), (0.5, 0.1), (1.0, -0.3), (1.5, -0.6)])
    metrics = agent.last.metrics
    assert metrics["watch/parted"] == 1 and metrics["watch/proxy_slope"] > 0 > metrics["watch/judge_slope"]
    assert metrics["judge/mean"] == pytest.approx(-0.6, abs=0.1)
    assert agent.last.samples[0]["metrics"]["judge"] == pytest.approx(watch.judgements[-1][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(watch, judge, [(2, -1)])


@pytest.mark.parametrize(
    "course",
    [
        [(0, 0), (0.5, 0.5), (1.0, 0.9), (1.5, 1.2)],  # both rise
        [(1.5, 1.0), (1.0, 0.9), (0.5, 0.5), (0, 0)],  # both fall
        [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)],  # nothing but noise
        [(0, 0), (1, -1)],  # too early to say
    ],
)
def test_it_is_silent_where_they_do_not_part(course: list[tuple[float, float]]) -> None:
    judge = Judge()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        play(RewardHackingWatch(judge, baseline=False), judge, course)


def test_kl_penalties_are_no_part_of_the_proxy() -> None:
    judge = Judge()
    watch = RewardHackingWatch(judge, baseline=False)
    play(watch, judge, [(1.0, 0.0)], terms={"kl": -5.0})
    assert watch.history[0]["proxy"] == pytest.approx(1.0, abs=0.1)
    named = RewardHackingWatch(judge, baseline=False, proxy="scor")
    with pytest.raises(ValueError, match="proxy 'scor' is no reward term; known: score"):
        play(named, judge, [(1.0, 0.0)])


def test_limits_warn_or_stop(tmp_path: Path) -> None:
    judge = Judge()
    watch = RewardHackingWatch(
        judge, baseline=False, limits={"objective/kl": 8.0}, action="stop", keep_best=True
    )
    agent = play(watch, judge, [(0, 0)], kl=7.0, run_dir=tmp_path)
    assert not watch.on_iteration(agent, {})
    with pytest.warns(UserWarning, match="objective/kl is 9 at iteration 0, above its limit 8"):
        over = play(watch, judge, [(1, 1)], kl=9.0, run_dir=tmp_path)
    assert watch.on_iteration(over, {}) and over.last.metrics["watch/over_limit"] == 1
    assert agent.saved and not over.saved  # beyond a limit nothing is the best
    unknown = RewardHackingWatch(judge, baseline=False, limits={"objective/kll": 1.0})
    with pytest.raises(ValueError, match="unknown metric 'objective/kll'; known: objective/kl"):
        play(unknown, judge, [(0, 0)])


def test_the_best_by_the_judge_is_kept(tmp_path: Path) -> None:
    judge = Judge()
    watch = RewardHackingWatch(judge, baseline=False, keep_best=True)
    agent = play(watch, judge, [(0, 0), (1, 1), (2, 0.5)], run_dir=tmp_path)
    assert agent.saved == [(0, "best-by-judge"), (1, "best-by-judge")]
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert rows[1]["judge/mean"] == pytest.approx(watch.best)


def test_a_resumed_watch_goes_on(tmp_path: Path) -> None:
    judge, other = Judge(), Judge()
    course = [(0, 0), (0.1, 0.2), (0.5, 0.1)]
    first = RewardHackingWatch(judge, baseline=False)
    play(first, judge, course)
    second = RewardHackingWatch(other, baseline=False)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    other.seed = judge.seed
    with pytest.warns(UserWarning, match="diverge"):
        play(second, other, [(1.0, -0.3)])
    assert len(second.history) == 4


def test_it_watches_a_real_training(tmp_path: Path) -> None:
    def many_a(completions: list[str]) -> list[float]:
        return [float(text.count("a")) for text in completions]

    def few_b(completions: list[str]) -> list[float]:
        return [-float(text.count("b")) for text in completions]

    envs = wrap_reward(vector_env(4), many_a)
    eval_envs = wrap_reward(vector_env(4), many_a)
    watch = RewardHackingWatch(few_b, proxy="many_a", keep_best=True, limits={"objective/kl": 50.0})
    agent = PPO(
        config(),
        envs=envs,
        eval_envs=eval_envs,
        config=PPOConfig(
            iterations=2, episodes_per_iteration=8, epochs=1, minibatches=1, eval_every=1, eval_episodes=8
        ),
        callbacks=[watch],
        run_dir=tmp_path,
    )
    result = agent.learn()
    assert [row["iteration"] for row in watch.history] == [0, 1, 2]
    assert watch.history[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert result.history[-1]["eval/judge/mean"] == watch.history[-1]["judge/mean"]
    assert {"eval/watch/proxy_slope", "eval/watch/judge_slope"} <= set(result.history[-1])
    assert PPO.load(tmp_path / "best-by-judge", envs=envs, callbacks=[RewardHackingWatch(few_b)]).policy


def test_bad_arguments() -> None:
    judge = Judge()
    for options, message in (
        ({"window": 2}, "window must be >= 3, got 2"),
        ({"alpha": 1.0}, "alpha must be in"),
        ({"action": "halt"}, "action must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            RewardHackingWatch(judge, **options)
    with pytest.raises(ValueError, match="needs an agent with eval_envs"):
        RewardHackingWatch(judge).on_start(SimpleNamespace(eval_envs=None, run_dir=None))
