"""Each check finds its fault: tasks that are wrong on purpose."""

from __future__ import annotations

import itertools
import json
import random
import socket
import time
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.partners import TALKER, Guess
from textenv.partners import Partner, Reply
from textenv.partners.partner import ReplyError
from textenv.rewards.term import RewardTerm
from textenv.tasks import Task, TaskData
from textenv.tasks.audit import CHECKS, AuditReport, Finding, audit
from textenv.tasks.audit.isolation import network_calls, random_states

LAST = ("rewards", "stops", "budget", "latency")


def found(check: str, task: Any = None, **arguments: Any) -> list[Finding]:
    """The findings of one check; the others are skipped."""
    arguments = {"episodes": 8, "num_envs": 3, "skip": [c for c in CHECKS if c != check]} | arguments
    if task is None:
        arguments = {"tokenizer": TALKER, "max_turns": 4, "max_turn_tokens": 2} | arguments
    return [finding for finding in audit(task, **arguments).findings if finding.check == check]


def task_of(**data: Any) -> Task:
    """A task of one turn about three letters."""
    fields = {"prompts": ["0", "1", "2"], "tokenizer": TALKER, "rewards": [], "max_new_tokens": 4} | data
    return Task(name="bad", description="", builder=lambda split="train": TaskData(**fields))


def rewarded(function: Any, **data: Any) -> Task:
    return task_of(rewards=[function], **data)


def is_zero(completions: list[str], **columns: Any) -> list[float]:
    return [float(text.startswith("0")) for text in completions]


def say_zero(words: Any, rng: np.random.Generator) -> str:
    return "0"


class Counts(Guess):
    """Depends on what happened in the process before."""

    episodes = itertools.count()

    def begin(self, rng: np.random.Generator) -> str:
        super().begin(rng)
        return str(next(self.episodes))


class Remembers(Guess):
    """Does not reset what the last episode left behind."""

    count = 0

    def reply(self, text: str) -> Reply:
        self.count += 1
        return Reply("h" if self.count > 5 else "l")


class Unshared(Guess):
    def begin(self, rng: np.random.Generator, **columns: Any) -> str:
        return super().begin(np.random.default_rng(columns["episode_id"]))


class AsksForEpisode(Guess):
    def begin(self, rng: np.random.Generator, episode_id: int) -> str:
        return super().begin(np.random.default_rng(episode_id))


class MovesGlobal(Guess):
    moved = "random"

    def reply(self, text: str) -> Reply:
        {"random": random.random, "numpy.random": np.random.rand, "torch": lambda: torch.rand(1)}[
            self.moved
        ]()
        return super().reply(text)


class Opens(Guess):
    def reply(self, text: str) -> Reply:
        socket.socket().close()
        return super().reply(text)


class NeedsADigit(Guess):
    def reply(self, text: str) -> Reply:
        if text == "00":
            raise LookupError("two zeros")
        return super().reply(text)


class NoRoom(RewardTerm):
    """Fails if an answer is as long as it can be, or has special tokens only."""

    def score(self, episodes: Any) -> Any:
        if bool((episodes.response_lengths == 60).any()):
            raise IndexError("no room")
        return episodes.response_lengths.float()


class BatchMean(RewardTerm):
    """A reward that depends on the other episodes."""

    def score(self, episodes: Any) -> Any:
        lengths = episodes.response_lengths.float()
        return lengths - lengths.mean()


@pytest.mark.parametrize("check", ["plays", "same-seed", "num-envs", "order", "groups", "garbage"])
def test_a_right_partner_and_a_right_reward_pass(check: str) -> None:
    assert [f.severity for f in found(check, partner=Guess)] == ["ok"]
    assert {f.severity for f in found(check, rewarded(is_zero))} == {"ok"}


@pytest.mark.parametrize(
    ("check", "partner", "says"),
    [
        ("same-seed", Counts, "8 of 8 episodes differ, first episode 0: the prompt is"),
        ("num-envs", Remembers, "of 8 episodes differ, first episode"),
        ("order", Remembers, "of 4 episodes differ, first episode"),
        ("groups", Unshared, "must come from the rng of begin"),
        ("global-random", MovesGlobal, "playing changes the state of random; use the rng of begin"),
        ("sockets", Opens, "uses of the network, such as socket.__new__"),
    ],
)
def test_faults_of_partners_are_found(check: str, partner: type[Partner], says: str) -> None:
    (finding,) = found(check, partner=partner)
    assert finding.severity == "error" and says in finding.text, finding


def test_a_partner_that_asks_for_the_episode_gets_a_warning() -> None:
    (finding,) = found("groups", partner=AsksForEpisode)
    assert finding.severity == "warning" and "begin asks for episode_id" in finding.text


@pytest.mark.parametrize("library", ["numpy.random", "torch"])
def test_global_generators_of_other_libraries_are_watched_and_restored(library: str) -> None:
    moves = type("Moves", (MovesGlobal,), {"moved": library})
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    (finding,) = found("global-random", partner=moves)
    assert finding.severity == "error" and library in finding.text
    # the other plays of the audit move the state, too: what the check itself does is undone
    assert set(random_states()) == {"random", "numpy.random", "torch"}
    if library == "torch":
        assert np.random.get_state()[1].tolist() == before[1]


def test_a_task_that_seeds_when_it_is_built_is_found() -> None:
    def build(split: str = "train") -> TaskData:
        random.seed(0)
        return task_of().build()

    (finding,) = found("global-random", Task(name="seeds", description="", builder=build))
    assert finding.severity == "error" and "building the task changes the state of random" in finding.text


def test_a_random_task_is_found() -> None:
    def build(split: str = "train") -> TaskData:
        return task_of(prompts=[str(np.random.default_rng().integers(10)) for _ in range(9)]).build()

    (finding,) = found("same-seed", Task(name="random", description="", builder=build))
    assert finding.severity == "error" and "the prompt is" in finding.text


def test_rewards_that_depend_on_the_batch_are_found() -> None:
    _, batch = found("order", rewarded(BatchMean()))
    assert batch.severity == "error" and "the reward 'batch-mean' is" in batch.text


def test_members_with_other_rewards_are_found() -> None:
    def by_episode(completions: list[str], **columns: Any) -> list[float]:
        return [random.random() for _ in completions]

    (finding,) = found("groups", rewarded(by_episode))
    assert finding.severity == "error" and "the reward 'by_episode' is" in finding.text


def test_answers_that_break_a_reward_or_a_partner_are_found() -> None:
    (finding,) = found("garbage", rewarded(NoRoom(), max_new_tokens=60))[:1]
    assert finding.severity == "error" and finding.text.startswith("endless answers raise RewardError: ")
    findings = found("garbage", partner=_FailsOn("9" * 5000), max_turn_tokens=2)
    assert [f.severity for f in findings] == ["ok", "warning"]  # too long a turn for this environment
    findings = found("garbage", partner=_FailsOn("-1"), max_turn_tokens=2)
    assert [f.severity for f in findings] == ["ok", "warning"]  # no token has the sign
    findings = found("garbage", partner=_FailsOn(" "), max_turn_tokens=2)
    assert [f.severity for f in findings] == ["error"]
    assert findings[0].text == "the turn ' ' raises KeyError: 'odd'"


def test_an_error_is_not_hidden_by_warnings_before_it() -> None:
    class Fails(Guess):
        def reply(self, text: str) -> Reply:
            if text == " " or not set(text) <= set("0123456789lhw "):
                raise KeyError("odd")
            return super().reply(text)

    severities = [f.severity for f in found("garbage", partner=Fails) if "the turn" in f.text]
    assert severities == ["error", "warning", "warning"]


def _FailsOn(odd: str) -> type[Partner]:
    class FailsOn(Guess):
        def reply(self, text: str) -> Reply:
            if text == odd:
                raise KeyError("odd")
            return super().reply(text)

    return FailsOn


def test_hidden_errors_of_a_partner_are_counted() -> None:
    class Hides(Guess):
        on_error = "reply"
        max_reply_tokens = 12

        def reply(self, text: str) -> Reply:
            raise ReplyError("failed", Reply("w"))

    findings = found("garbage", partner=Hides)
    assert [f.severity for f in findings if "on_error hides it" in f.text] == ["warning"]


def test_garbage_that_is_rewarded_is_found() -> None:
    (finding,) = found("player", rewarded(lambda completions, **columns: [1.0] * len(completions)))
    assert finding.severity == "skipped" and "no scripted player" in finding.text
    constant = rewarded(lambda completions, **columns: [1.0] * len(completions))
    (finding,) = found("player", constant, player=say_zero)
    assert finding.severity == "error" and finding.text.startswith("the player's mean return is 1, random")
    (finding,) = found("player", rewarded(is_zero, optimum=1.0), player=say_zero)
    assert finding.severity == "ok" and finding.text.endswith("the optimum 1")


def test_a_task_brings_its_player() -> None:
    (finding,) = found("player", rewarded(is_zero, make_player=_player))
    assert finding.severity == "ok"


def _player() -> Any:
    return say_zero


@pytest.mark.parametrize(("optimum", "severity"), [(0.5, "error"), (2.0, "warning")])
def test_a_wrong_optimum_is_found(optimum: float, severity: str) -> None:
    (finding,) = found("player", rewarded(is_zero, optimum=optimum), player=say_zero)
    assert finding.severity == severity and f"the optimum {optimum:g}" in finding.text


def test_turns_of_the_player_that_do_not_fit_are_found() -> None:
    first = found("player", rewarded(is_zero), player=lambda words, rng: "01234")[0]
    assert first.severity == "error" and "has 5 tokens, but a turn has 4 at most" in first.text


def measured(task: Any = None, **arguments: Any) -> AuditReport:
    checks = ("plays", "player", *LAST)
    skip = [check for check in CHECKS if check not in checks]
    return audit(task, **{"episodes": 6, "num_envs": 3, "skip": skip} | arguments)


def warnings_of(report: AuditReport) -> dict[str, str]:
    return {finding.check: finding.text for finding in report.of("warning")}


def test_rewards_that_tell_nothing_apart_are_found() -> None:
    constant = rewarded(lambda completions, **columns: [0.5] * len(completions))
    assert warnings_of(measured(constant, player=say_zero))["rewards"].startswith("every return is 0.5")
    (finding,) = [finding for finding in measured(constant).findings if finding.check == "rewards"]
    assert finding.text == "every return of bad answers is 0.5; a scripted player would tell more"
    assert "neither a reward nor a partner" in warnings_of(measured(task_of()))["rewards"]


def test_a_player_that_never_finishes_is_found() -> None:
    told = warnings_of(measured(rewarded(is_zero), player=lambda words, rng: "0000"))
    assert told["stops"] == "player: truncated 100%; every episode of the player is truncated"


def test_replies_without_room_are_found() -> None:
    class Long(Guess):
        def reply(self, text: str) -> Reply:
            return Reply("h" * 9)

    report = measured(tokenizer=TALKER, partner=Long, max_turns=4, max_turn_tokens=1)
    texts = [f.text for f in report.of("warning") if f.check == "budget"]
    assert texts == [
        "random: 100% of the episodes end because max_length has no room for a reply",
        "random: a reply has 9 tokens, max_reply_tokens of the partner is 4",
    ]
    assert report.figures["tokens"]["random"]["reply_tokens"]["max"] == 9
    assert report.figures["stop_reasons"]["random"] == {"max_length": 1.0}


def test_slow_replies_are_found() -> None:
    class Sleeps(Guess):
        def reply(self, text: str) -> Reply:
            time.sleep(0.06)
            return Reply("w", done=True)

    arguments = {"tokenizer": TALKER, "partner": Sleeps, "max_turns": 1, "max_turn_tokens": 1}
    report = measured(**arguments, episodes=2)
    assert "give the partner workers" in warnings_of(report)["latency"]
    assert report.figures["latency_ms"]["reply"]["p50"] > 60


def test_a_task_that_cannot_be_played_says_so_once() -> None:
    class Broken(Guess):
        def reply(self, text: str) -> Reply:
            raise RuntimeError("broken")

    report = audit(tokenizer=TALKER, partner=Broken, max_turns=2, max_turn_tokens=1, episodes=2)
    (error,) = report.of("error")
    assert error.check == "plays" and "broken" in error.text and not report.ok
    assert {f.text for f in report.of("skipped")} == {"random episodes cannot be played"}


def test_the_report_is_json_and_a_table() -> None:
    report = audit(rewarded(is_zero), episodes=2, player=say_zero)
    assert json.loads(json.dumps(report.to_dict()))["task"] == "bad"
    assert report.table().row_count == len(report.findings)
    assert report.figures["return"]["max"] == 1.0


def test_what_cannot_be_made_is_the_callers_error() -> None:
    with pytest.raises(ValueError, match="unknown task 'no-such'"):
        audit("no-such")
    with pytest.raises(ValueError, match="skip must be one of"):
        audit("probe-copy", skip=["speed"])
    with pytest.raises(ValueError, match="episodes must be >= 1, got 0"):
        audit("probe-copy", episodes=0)


def test_network_calls_are_seen_in_other_threads_and_not_outside() -> None:
    import threading

    with network_calls() as calls:
        thread = threading.Thread(target=lambda: socket.socket().close())
        thread.start()
        thread.join()
        first, second = socket.socketpair()  # local
        first.close(), second.close()
    socket.socket().close()
    assert calls == ["socket.__new__"]
