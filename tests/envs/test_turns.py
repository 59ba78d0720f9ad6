"""Episodes of several turns: who replies when, what is recorded, and that nothing depends on timing."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from tests.helpers.partners import (
    TALKER,
    Endless,
    Failing,
    Guess,
    Hanging,
    Slow,
    Waiting,
)
from textenv.envs.picture import draw
from textenv.episodes.conversations import completion_messages
from textenv.episodes.turns import turn_ends
from textenv.generation.replay import Replay
from textenv.partners import Partner, Reply
from textenv.partners.calls import PartnerError
from textenv.partners.registry import PARTNERS, register_partner
from textenv.partners.transcript import Transcript
from textenv.rewards.turns import TurnRewardTerm
from textenv.scoring import RewardError
from textenv.tasks.letters import letter_tokenizer

EOS = TALKER.eos_token_id
MADE: dict[str, Any] = {
    "tokenizer": TALKER,
    "rewards": [],
    "max_turns": 4,
    "max_turn_tokens": 2,
    "partner": Guess,
}


def make_vec(num_envs: int = 3, **changes: Any) -> Any:
    return gym.make_vec("TextRLHF-v0", num_envs, **{**MADE, **changes})


def by_key(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    """Digits and stop tokens, a function of the noise key alone."""
    key = torch.as_tensor(info["key"])
    return torch.where(key % 3 == 0, EOS, (key >> 8) % 10)


def ids(text: str) -> list[int]:
    return TALKER(text, add_special_tokens=False)["input_ids"]


class Script(Partner):
    """Replies what it is told."""

    replies: tuple[Any, ...] = ()
    heard: list[str]

    def begin(self, rng: np.random.Generator) -> str:
        self.heard, self.at = [], 0
        return "h"

    def reply(self, text: str) -> Any:
        self.heard.append(text)
        self.at += 1
        return self.replies[self.at - 1]


def script(*replies: Any) -> type[Script]:
    return type("Told", (Script,), {"replies": replies})


def play(env: Any, actions: list[int]) -> list[tuple[Any, ...]]:
    return [env.step(action) for action in actions]


# -- one episode, worked by hand -----


def test_a_reply_enters_in_the_step_that_ends_the_turn() -> None:
    env = gym.make(
        "TextRLHF-v0", **{**MADE, "partner": script(Reply("lh", reward=0.5), Reply("w", 2.0, True))}
    )
    obs, _ = env.reset(seed=0)
    start = [TALKER.bos_token_id, *ids("h")]
    assert obs["input_ids"][:2].tolist() == start and int(obs["prompt_length"]) == 2
    steps = play(env, [3, EOS, 4, 5])
    # The first turn goes on; the second token ends it, and the reply is there in the same step.
    assert steps[0][0]["input_ids"][:3].tolist() == [*start, 3] and int(steps[0][0]["prompt_length"]) == 2
    first = [*start, 3, EOS, *ids("lh")]
    assert steps[1][0]["input_ids"][: len(first)].tolist() == first
    assert int(steps[1][0]["prompt_length"]) == 6 and steps[1][0]["attention_mask"].sum() == 6
    assert [step[1] for step in steps] == [0.0, 0.5, 0.0, 2.0]
    assert [step[2] for step in steps] == [False, False, False, True] and not any(step[3] for step in steps)
    base = env.unwrapped
    episode = base.finished_with_rewards
    assert episode.input_ids.tolist() == [[*first, 4, 5]]
    assert episode.action_mask.tolist() == [[False, False, True, True, False, False, True, True]]
    assert episode.rewards.tolist() == [[0, 0, 0, 0.5, 0, 0, 0, 2.0]]
    assert episode.reward_terms["partner"].tolist() == episode.rewards.tolist()
    assert episode.prompt_lengths.tolist() == [2]
    assert base.rows._turns._partners[0].heard == ["3", "45"]
    extras = {name: column[0] for name, column in episode.extras.items()}
    assert extras["turns"] == ["3", "45"] and extras["opening"] == "h" and extras["last_reply"] == "w"
    assert extras["stop_reason"] == "done" and [r["reward"] for r in extras["replies"]] == [0.5, 2.0]
    assert episode.validate() is episode


@pytest.mark.parametrize(
    ("changes", "replies", "actions", "reason"),
    [
        ({"max_turns": 2}, ["l", "l"], [1, EOS, 2, EOS], "max_turns"),
        ({"max_new_tokens": 3}, ["l", "l"], [1, EOS, 2], "max_new_tokens"),
        ({"max_new_tokens": 4}, ["l", "l"], [1, EOS, 2, EOS], "max_new_tokens"),
        ({"max_length": 5}, ["lllll"], [1, EOS], "max_length"),
        ({"max_length": 6}, ["l"], [1, EOS, 2], "max_length"),
        ({}, [None], [1, EOS], "done"),
    ],
)
def test_why_an_episode_ends(
    changes: dict[str, Any], replies: list[Any], actions: list[int], reason: str
) -> None:
    env = gym.make("TextRLHF-v0", **{**MADE, "partner": script(*replies), **changes})
    env.reset(seed=0)
    *before, (_, _, terminated, truncated, _) = play(env, actions)
    assert not any(step[2] or step[3] for step in before)
    assert (terminated, truncated) == (reason == "done", reason != "done")
    episode = env.unwrapped.finished
    assert episode.extras["stop_reason"] == [reason]
    # What does not fit is kept beside the episode, and nothing is cut.
    assert int(episode.lengths[0]) == (2 + len(actions) + (1 if len(actions) > 2 else 0))


def test_rendering_shows_the_roles() -> None:
    made = {**MADE, "partner": script(Reply("lh", 0.5, role="tool"), Reply("w", 2.0, True))}
    env = gym.make("TextRLHF-v0", **made, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "[0] <bos>h | policy: "
    play(env, [3, EOS])
    assert env.render() == "[0] <bos>h | policy: 3<eos> / tool: lh  partner=+0.500"
    play(env, [4, 5])
    shown = "[0] <bos>h | policy: 3<eos> / tool: lh / policy: 45  (over)  partner=+2.500"
    assert env.render() == shown
    pictures = gym.make("TextRLHF-v0", **made, render_mode="rgb_array")
    pictures.reset(seed=0)
    play(pictures, [3, EOS])
    turns = [("policy: 3<eos>", True), ("tool: lh", False)]
    assert np.array_equal(pictures.render(), draw("[0]", "<bos>h", "", "partner=+0.500", turns))


def test_rendering_escapes_what_a_partner_says() -> None:
    tokenizer = letter_tokenizer("h1\n\x1b")
    escape = type("Escape", (Script,), {"replies": [Reply("\x1b\n", role="a\x1b")]})
    envs = make_vec(1, tokenizer=tokenizer, partner=escape, render_mode="ansi")
    envs.reset(seed=0)
    envs.step([tokenizer.eos_token_id])
    assert envs.render() == (r"[0] <bos>h | policy: <eos> / a\x1b: \x1b\n  partner=+0.000",)


def test_rendering_shows_that_a_row_waits() -> None:
    envs = make_vec(2, partner=Hanging, waiting="step", render_mode="ansi")
    envs.reset(seed=0)
    envs.step([1, 9])
    envs.step([EOS, 9])
    assert envs.render()[0] == "[0] <bos>w9 | policy: 1<eos>  (waiting)  partner=+0.000"
    envs.close()


@pytest.mark.parametrize("changes", [{"max_new_tokens": 3}, {"max_length": 6}])
def test_a_turn_that_a_budget_cuts_is_in_the_record(changes: dict[str, Any]) -> None:
    env = gym.make("TextRLHF-v0", **{**MADE, "partner": script("l"), **changes})
    env.reset(seed=0)
    play(env, [1, EOS, 2])
    episode = env.unwrapped.finished
    assert episode.extras["turns"] == [["1", "2"]] and len(episode.extras["replies"][0]) == 1
    said = [(m["role"], m["content"]) for m in completion_messages(episode, [""])[0]]
    assert said == [("assistant", "1"), ("user", "l"), ("assistant", "2")]


def test_a_turn_ends_at_its_budget_and_at_a_stop_string() -> None:
    made = {**MADE, "stop_strings": ["77"], "max_turn_tokens": 4, "partner": script("l", "l", "l")}
    env = gym.make("TextRLHF-v0", **made)
    env.reset(seed=0)
    play(env, [1, 2, 3, 4, 7, 7])
    rows = env.unwrapped.rows
    assert rows._turns._partners[0].heard == ["1234", "77"]
    # Stop strings and the step t are counted within the turn.
    play(env, [7])
    assert len(rows._turns._partners[0].heard) == 2


def test_min_new_tokens_holds_in_every_turn() -> None:
    env = gym.make(
        "TextRLHF-v0", **{**MADE, "min_new_tokens": 1, "max_turn_tokens": 3, "partner": script(*"lll")}
    )
    env.reset(seed=0)
    masks = [env.unwrapped.action_masks()[EOS]]
    for action in (1, EOS, 2, EOS):
        env.step(action)
        masks.append(env.unwrapped.action_masks()[EOS])
    assert masks == [False, True, False, True, False]


def test_an_empty_reply_is_an_error_of_the_partner() -> None:
    env = gym.make("TextRLHF-v0", **{**MADE, "partner": script("")})
    env.reset(seed=0)
    with pytest.raises(PartnerError, match="must have a token, got none"):
        play(env, [1, EOS])


# -- Gymnasium -----


@pytest.mark.filterwarnings("error")
def test_checkers_accept_it() -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3

    check_env(gym.make("TextRLHF-v0", **MADE).unwrapped, skip_render_check=True)
    check_sb3(gym.make("TextRLHF-v0", **MADE), warn=False)


def test_the_spec_is_json() -> None:
    register_partner("guess-test")(Guess)
    try:
        env = gym.make("TextRLHF-v0", **{**MADE, "partner": ["guess-test", {"top": 3}]})
        assert env.spec is not None and env.spec.kwargs["partner"] == ["guess-test", {"top": 3}]
        first, second = env.reset(seed=3)[0], gym.make(env.spec).reset(seed=3)[0]
        assert first["input_ids"].tolist() == second["input_ids"].tolist()
        assert first["input_ids"][1:3].tolist() == ids("w3")
    finally:
        del PARTNERS["guess-test"]


def rollout(envs: Any, steps: int = 30) -> list[Any]:
    obs, info = envs.reset(seed=5)
    seen = []
    for _ in range(steps):
        obs, rewards, terminated, truncated, info = envs.step(np.asarray(by_key(obs, info)))
        seen.append(
            [np.asarray(x) for x in (obs["input_ids"], obs["attention_mask"], obs["prompt_length"])]
            + [np.asarray(x, dtype=np.float32) for x in (rewards, terminated, truncated)]
        )
    return seen


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.SAME_STEP, gym.vector.AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_native_is_sync_and_async(mode: Any, kind: str) -> None:
    native = make_vec(autoreset=mode, arrays="numpy")
    other = gym.make_vec(
        "TextRLHF-v0", 3, vectorization_mode=kind, vector_kwargs={"autoreset_mode": mode}, **MADE
    )
    for a, b in zip(rollout(native), rollout(other), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    other.close()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda envs: pickle.loads(pickle.dumps(envs))])
@pytest.mark.parametrize("partner", [Guess, Slow, Waiting])
def test_a_copy_in_mid_turn_goes_on_alike(clone: Any, partner: Any) -> None:
    envs = make_vec(partner=partner, waiting="step")
    obs, info = envs.reset(seed=2)
    for _ in range(5):
        obs, _, _, _, info = envs.step(by_key(obs, info))
    twin = clone(envs)
    ends = []
    for env in (envs, twin):
        env.unwrapped.waiting = "block"
        each = obs, info
        for _ in range(12):
            o, _, _, _, i = env.step(by_key(*each))
            each = o, i
        ends.append((o["input_ids"].tolist(), env.unwrapped._rows.steps.tolist()))
        env.close()
    if partner is Guess:
        assert ends[0] == ends[1]


# -- the same episodes however they are played -----


def record(batch: textenv.EpisodeBatch) -> dict[str, Any]:
    fields = {name: tensor.tolist() for name, tensor in batch.tensors()}
    return {**fields, "extras": batch.extras}


@pytest.mark.parametrize("partner", [Guess, Slow, Waiting])
@pytest.mark.parametrize("num_envs", [1, 3, 16])
@pytest.mark.parametrize("waiting", ["block", "step"])
def test_episodes_do_not_depend_on_rows_waiting_or_latency(partner: Any, num_envs: int, waiting: str) -> None:
    expected = textenv.collect(make_vec(2), by_key, 20, seed=1)
    envs = make_vec(num_envs, partner=partner)
    found = textenv.collect(envs, by_key, 20, seed=1, waiting=waiting)
    assert record(found) == record(expected)
    assert envs.unwrapped.waiting == "block"
    envs.close()
    assert len(set(expected.extras["stop_reason"])) > 1


def test_a_group_meets_one_world() -> None:
    batch = textenv.collect(make_vec(3, samples_per_prompt=4), by_key, 16, seed=0)
    worlds = {}
    envs = make_vec(1, samples_per_prompt=4)
    envs.reset(seed=0, options={"episodes": 16})
    for episode in range(16):
        worlds[int(envs.unwrapped._rows.episode_ids[0])] = envs.unwrapped._turns._partners[0].secret
        obs, info = envs.unwrapped._observe(), envs.unwrapped._info()
        done = False
        while not done and episode < 15:
            obs, _, te, tr, info = envs.step(by_key(obs, info))
            done = bool((te | tr)[0])
    groups = [{worlds[i] for i in range(4 * g, 4 * g + 4)} for g in range(4)]
    assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) > 1
    assert batch.episode_id.tolist() == list(range(16))


def test_immediate_rewards_are_the_deferred_ones() -> None:
    rewards = [["length", {"coef": 0.5}], ["repetition", {"n": 1}]]
    batches = [
        textenv.collect(make_vec(3, rewards=rewards, partner=Slow), by_key, 12, seed=4, scoring=mode)
        for mode in ("deferred", "immediate")
    ]
    assert set(batches[0].reward_terms) == {"partner", "length", "repetition"}
    for name, values in batches[0].reward_terms.items():
        torch.testing.assert_close(values, batches[1].reward_terms[name], rtol=0, atol=0)
    torch.testing.assert_close(batches[0].rewards, batches[1].rewards)


def test_rewards_are_conserved() -> None:
    envs = make_vec(3)
    obs, info = envs.reset(seed=0, options={"episodes": 10})
    total, kept = 0.0, 0.0
    while envs.unwrapped._rows.active.any():
        obs, rewards, _, _, info = envs.step(by_key(obs, info))
        total += float(rewards.sum())
        ended = envs.unwrapped.finished_with_rewards
        if ended is not None:
            kept += float(ended.returns.sum())
            assert float(info["episode"]["r"].sum()) == pytest.approx(float(ended.returns.sum()))
            said = [sum(reply["reward"] for reply in replies) for replies in ended.extras["replies"]]
            assert ended.returns.tolist() == pytest.approx(said)
    assert total == pytest.approx(kept)


def test_reward_functions_see_turns_and_messages() -> None:
    seen: dict[str, Any] = {}

    def texts(completions: list[str], turns: list[list[str]], stop_reason: list[str], **columns: Any) -> Any:
        seen["texts"] = completions, turns, stop_reason
        return [float(len(said)) for said in turns]

    envs = make_vec(3, rewards=[texts])
    batch = textenv.collect(envs, by_key, 6, seed=1)
    completions, turns, reasons = seen["texts"]
    assert batch.reward_terms["texts"].sum(-1).tolist() == [float(len(said)) for said in turns]
    assert (batch.rewards.sum(-1) - batch.reward_terms["partner"].sum(-1)).tolist() == list(map(len, turns))
    assert reasons == batch.extras["stop_reason"] and completions == batch.completion_texts(TALKER)
    replies = batch.extras["replies"]
    messages = completion_messages(batch, completions)
    for said, heard, conversation in zip(turns, replies, messages, strict=True):
        roles = [message["role"] for message in conversation]
        assert roles == (["assistant", "user"] * len(said))[:-1]
        assert [message["content"] for message in conversation[::2]] == said
        assert [message["content"] for message in conversation[1::2]] == [r["text"] for r in heard[:-1]]


class Sevens(TurnRewardTerm):
    """One for each turn that holds a seven, and a tenth for the number of turns before."""

    def score_turns(self, episodes: textenv.EpisodeBatch) -> list[list[float]]:
        said = self.turn_texts(episodes)
        return [[float("7" in text) + 0.125 * i for i, text in enumerate(turns)] for turns in said]


@pytest.mark.parametrize("partner", [Guess, Slow])
def test_rewards_per_turn(partner: Any) -> None:
    batches = [
        textenv.collect(make_vec(3, rewards=[Sevens()], partner=partner), by_key, 12, seed=4, scoring=mode)
        for mode in ("deferred", "immediate")
    ]
    values = batches[0].reward_terms["sevens"]
    assert torch.equal(values, batches[1].reward_terms["sevens"])
    for row, turns in enumerate(batches[0].extras["turns"]):
        ends = turn_ends(batches[0].action_mask)[row]
        expected = [float("7" in text) + 0.125 * i for i, text in enumerate(turns)]
        assert values[row][ends].tolist() == expected and values[row].sum() == sum(expected)
    assert values.sum() > 3


def test_a_reward_per_turn_gives_one_number_per_turn() -> None:
    class Few(TurnRewardTerm):
        def score_turns(self, episodes: textenv.EpisodeBatch) -> list[list[float]]:
            return [[1.0] for _ in range(len(episodes))]

    with pytest.raises(RewardError, match="one number per turn"):
        textenv.collect(make_vec(2, rewards=[Few()]), by_key, 6, seed=0)


# -- records -----


def replayed(batch: textenv.EpisodeBatch, partner: Any, seed: int) -> textenv.EpisodeBatch:
    """Play recorded episodes again, with their own tokens."""
    rows = zip(batch.input_ids, batch.action_mask, strict=True)
    said = [row[mask].tolist() for row, mask in rows]
    policy = Replay(
        seed=seed,
        episode_ids=batch.episode_id.numpy(),
        responses=said,
        log_probs=[[0.0] * len(ids) for ids in said],
        max_new_tokens=8,
        sampling={},
    )
    return textenv.collect(make_vec(2, partner=partner), policy, len(batch), seed=seed)


@pytest.mark.parametrize("partner", [Slow, Hanging, Endless])
def test_a_transcript_replays_the_record(partner: Any, tmp_path: Path) -> None:
    batch = textenv.collect(make_vec(4, partner=partner), by_key, 12, seed=6)
    path = tmp_path / "episodes.jsonl"
    batch.save(path)
    for source in (batch, str(path)):
        again = replayed(batch, Transcript(source), seed=6)
        again.log_probs = None
        assert record(again) == record(batch)
    spec = ["transcript", {"episodes": str(path)}]
    assert replayed(batch, spec, seed=6).extras == batch.extras
    with pytest.raises(ValueError, match="is not recorded"):
        textenv.collect(make_vec(1, partner=Transcript(batch.select([5]))), by_key, 2, seed=6)
    (turn, *_), *_ = batch.extras["turns"]
    script = Transcript(batch)
    script.begin(np.random.default_rng(0), episode_id=0)
    with pytest.raises(ValueError, match=f"turn 0 must be the recorded '{turn}', got '{turn}9'"):
        script.reply(turn + "9")


@pytest.mark.parametrize("suffix", [".jsonl", ""])
def test_a_record_is_saved_with_its_conversations(suffix: str, tmp_path: Path) -> None:
    batch = textenv.collect(make_vec(3), by_key, 8, seed=2)
    batch.save(tmp_path / f"saved{suffix}", tokenizer=TALKER)
    assert record(textenv.EpisodeBatch.load(tmp_path / f"saved{suffix}")) == record(batch)


# -- what goes wrong -----


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("textenv-partner")}


def test_an_exception_can_end_the_episode() -> None:
    envs = make_vec(3, partner=type("Kind", (Failing,), {"on_error": "end"}))
    batch = textenv.collect(envs, by_key, 12, seed=0)
    ended = [reason == "error" for reason in batch.extras["stop_reason"]]
    assert any(ended) and not all(ended)
    assert batch.extras["partner_errors"] == [int(value) for value in ended]
    assert batch.truncated[ended].all()


def test_an_exception_can_be_the_reply() -> None:
    class Refusing(Guess):
        on_error = "reply"

        def reply(self, text: str) -> Reply:
            raise ValueError("l")

    letters = letter_tokenizer("0123456789lhw Ero:")
    env = gym.make("TextRLHF-v0", **{**MADE, "tokenizer": letters, "partner": Refusing, "max_length": 60})
    env.reset(seed=0)
    play(env, [1, letters.eos_token_id] * 4)
    (episode,) = env.unwrapped.finished.extras["replies"]
    assert [reply["text"] for reply in episode] == ["Error: l"] * 4
    assert env.unwrapped.finished.extras["partner_errors"] == [4]


def test_a_reply_that_cannot_be_encoded_is_an_error_of_the_partner() -> None:
    env = gym.make("TextRLHF-v0", **{**MADE, "partner": script("?")})
    env.reset(seed=0)
    with pytest.raises(PartnerError, match=r"replies\[0\] can't be tokenised"):
        play(env, [1, EOS])
    ending = type("Ending", (script("?"),), {"on_error": "end"})
    env = gym.make("TextRLHF-v0", **{**MADE, "partner": ending})
    env.reset(seed=0)
    *_, (_, _, terminated, truncated, _) = play(env, [1, EOS])
    assert (terminated, truncated) == (False, True)
    extras = env.unwrapped.finished.extras
    assert (extras["stop_reason"], extras["partner_errors"]) == (["error"], [1])


def test_an_exception_is_raised_by_default() -> None:
    with pytest.raises(PartnerError, match=r"Failing raised ZeroDivisionError: below five \(row \d\)"):
        textenv.collect(make_vec(3, partner=Failing), by_key, 12, seed=0)


@pytest.mark.parametrize("waiting", ["block", "step"])
def test_a_hanging_partner_times_out(waiting: str) -> None:
    envs = make_vec(4, partner=Hanging)
    batch = textenv.collect(envs, by_key, 12, seed=0, waiting=waiting)
    reasons = batch.extras["stop_reason"]
    assert len(batch) == 12 and reasons.count("timeout") == sum(batch.extras["partner_timeouts"]) > 0
    assert {*reasons} > {"timeout"}
    envs.close()
    assert not threads()


def test_a_partner_that_never_ends_reaches_max_turns() -> None:
    batch = textenv.collect(make_vec(3, partner=Endless), by_key, 9, seed=0)
    assert batch.extras["stop_reason"] == ["max_turns"] * 9
    assert batch.returns.tolist() == [2.0] * 9 and batch.truncated.all()


@pytest.mark.parametrize("partner", [Slow, Waiting])
def test_threads_end_with_the_environment(partner: Any) -> None:
    envs = make_vec(3, partner=partner)
    textenv.collect(envs, by_key, 6, seed=0)
    envs.reset(seed=1)
    envs.close()
    assert not threads()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partner": "gess"}, "unknown partner 'gess'"),
        ({"partner": "gess", "tokenizer": None}, "unknown partner 'gess'"),
        ({"partner": 3}, "partner must be a Partner"),
        ({"partner": Partner}, "must define reply"),
        ({"partner": [Guess]}, "partner must be"),
        ({"max_turns": 0}, "max_turns must be >= 1, got 0"),
        ({"max_length": 1}, "max_length must be more than the longest prompt"),
        ({"waiting": "later"}, "waiting must be one of"),
        ({"partner": None}, "max_turns needs a partner"),
        ({"partner": type("Bad", (Guess,), {"on_error": "cry"})}, "on_error must be one of"),
        ({"partner": type("Bad", (Guess,), {"timeout": 1.0})}, "timeout needs workers >= 1"),
        ({"tokenizer": None}, "needs tokenizer="),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    made = {**MADE, **changes}
    if changes.get("partner", 0) is None:
        made["prompts"] = ["h"]
        made["max_new_tokens"] = 3
    with pytest.raises((ValueError, TypeError), match=message):
        gym.make_vec("TextRLHF-v0", 2, **made)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (3, "must return a Reply, a string or None, got 3"),
        (lambda: Reply(reward=float("nan")), "Reply.reward must be finite"),
        (lambda: Reply(4), "Reply.text must be a string"),
        (lambda: Reply("l", done=1), "Reply.done must be a bool"),
    ],
)
def test_bad_replies(reply: Any, message: str) -> None:
    class Bad(Script):
        def reply(self, text: str) -> Any:
            return reply() if callable(reply) else reply

    env = gym.make("TextRLHF-v0", **{**MADE, "partner": Bad})
    env.reset(seed=0)
    with pytest.raises(PartnerError, match=message):
        play(env, [1, EOS])
