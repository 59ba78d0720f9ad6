"""`TextVectorEnv`: native, sync and async agree; autoreset modes, arrays, what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from tests.helpers.env_helpers import (
    EOS,
    MADE,
    PROMPTS,
    TOKENIZER,
    V,
    by_key,
    byte_level_tokenizer,
    make_vec,
    random_actions,
    vector_env,
)
from textenv.envs.autoreset import AUTORESET_MODES
from textenv.prompts.prompt_set import PromptSet

INFO = ("key", "episode_id", "prompt_index", "active")
OBSERVATION = ("input_ids", "attention_mask", "prompt_length")


def numpy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: numpy(item) for name, item in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


def assert_same_rows(ours: Any, theirs: Any, rows: np.ndarray, what: str) -> None:
    np.testing.assert_array_equal(np.asarray(ours)[rows], np.asarray(theirs)[rows], err_msg=what)


def assert_same(ours: Any, theirs: Any, what: str) -> None:
    """Equality of nested dicts and arrays, object arrays and data types included."""
    assert type(ours) is type(theirs), what
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), what
        for name in ours:
            assert_same(ours[name], theirs[name], f"{what}[{name!r}]")
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{what}[{row}]")
    elif ours is not None:
        assert ours.dtype == theirs.dtype, what
        np.testing.assert_array_equal(ours, theirs, err_msg=what)


def compare_transition(ours: Any, theirs: Any, step: int) -> np.ndarray:
    """Everything but time; returns which rows ended."""
    for name in OBSERVATION:
        np.testing.assert_array_equal(ours[0][name], theirs[0][name], err_msg=f"{name} at step {step}")
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
    for i in (2, 3):
        np.testing.assert_array_equal(ours[i], theirs[i], err_msg=f"flags at step {step}")
    everybody = np.ones(len(theirs[1]), dtype=bool)
    for name in INFO:
        assert_same_rows(ours[4][name], theirs[4][name], theirs[4].get(f"_{name}", everybody), name)
    return ours[2] | ours[3]


def compare_ends(ours: dict[str, Any], theirs: dict[str, Any], ended: np.ndarray, same_step: bool) -> None:
    """Episode statistics, and in same-step mode the final observations and infos."""
    assert ("episode" in ours) == ended.any()
    if not ended.any():
        return
    np.testing.assert_array_equal(ours["_episode"], ended)
    final = theirs["final_info"] if same_step else theirs
    for name in ("r", "l"):
        np.testing.assert_allclose(ours["episode"][name][ended], final["episode"][name][ended], rtol=1e-6)
        assert not ours["episode"][name][~ended].any()
    if not same_step:
        assert "final_obs" not in ours
        return
    np.testing.assert_array_equal(ours["_final_obs"], ended)
    np.testing.assert_array_equal(ours["_final_info"], ended)
    for row in np.flatnonzero(ended):
        for name in OBSERVATION:
            np.testing.assert_array_equal(ours["final_obs"][name][row], theirs["final_obs"][row][name])
    for name in INFO:
        assert_same_rows(ours["final_info"][name], final[name], ended, name)
    assert_same_rows(ours["final_info"]["episode"]["r"], ours["episode"]["r"], ended, "return")


class TestModesAgree:
    @pytest.mark.parametrize("mode", ["sync", "async"])
    @pytest.mark.parametrize("autoreset", AUTORESET_MODES)
    def test_step_by_step(self, mode: str, autoreset: str) -> None:
        steps, rows = (60, 3) if mode == "sync" else (25, 2)
        native = make_vec(rows, autoreset=autoreset)
        upstream = make_vec(rows, mode, vector_kwargs={"autoreset_mode": AUTORESET_MODES[autoreset]})
        try:
            assert native.single_observation_space == upstream.single_observation_space
            assert native.observation_space == upstream.observation_space
            assert native.action_space == upstream.action_space
            assert native.metadata["autoreset_mode"] == upstream.metadata["autoreset_mode"]
            a, b = numpy(native.reset(seed=11)[0]), upstream.reset(seed=11)[0]
            for name in OBSERVATION:
                np.testing.assert_array_equal(a[name], b[name])
            ends = 0
            for step, actions in enumerate(random_actions(steps, rows)):
                ours = tuple(numpy(part) for part in native.step(actions))
                theirs = upstream.step(actions)
                ended = compare_transition(ours, theirs, step)
                compare_ends(ours[4], theirs[4], ended, autoreset == "same_step")
                ends += int(ended.sum())
                if autoreset == "disabled" and ended.any():
                    a, infos = native.reset(options={"reset_mask": ended.copy()})
                    b, theirs_infos = upstream.reset(options={"reset_mask": ended.copy()})
                    for name in OBSERVATION:
                        np.testing.assert_array_equal(a[name], b[name])
                    for name in INFO:
                        assert_same_rows(infos[name], theirs_infos[name], ended, name)
            assert ends > steps // 3
        finally:
            upstream.close()

    def test_seeds_by_row(self) -> None:
        native, upstream = make_vec(3), make_vec(3, "sync")
        for seed in ([5, 5, 9], [None, 3, None], 4, None):
            ours, theirs = native.reset(seed=seed), upstream.reset(seed=seed)
            for name in OBSERVATION:
                np.testing.assert_array_equal(ours[0][name], theirs[0][name])
            np.testing.assert_array_equal(ours[1]["key"], theirs[1]["key"])

    def test_single_environments_are_the_rows(self) -> None:
        envs = make_vec(3)
        singles = [gym.make("TextRLHF-v0", **MADE) for _ in range(3)]
        envs.reset(seed=7)
        for i, env in enumerate(singles):
            env.reset(seed=7 + i)
        for actions in random_actions(30, 3, seed=2):
            _, rewards, terminated, truncated, info = envs.step(actions)
            for i, env in enumerate(singles):
                _, reward, over, cut, single_info = env.step(int(actions[i]))
                assert reward == pytest.approx(float(rewards[i]))  # sums of Python floats and of float32
                assert (over, cut) == (bool(terminated[i]), bool(truncated[i]))
                if over or cut:
                    assert single_info["episode"]["r"] == info["episode"]["r"][i]
                    _, single_info = env.reset()
                assert single_info["key"] == info["key"][i]


class TestAutoreset:
    def test_disabled_rows_absorb(self) -> None:
        envs = vector_env(2, autoreset="disabled")
        envs.reset(seed=0)
        over, _, terminated, _, info = envs.step([EOS, 1])
        assert terminated.tolist() == [True, False]
        assert info["active"].tolist() == [False, True]
        after, rewards, terminated, truncated, _ = envs.step([3, 2])
        assert torch.equal(over["input_ids"][0], after["input_ids"][0])
        assert not (terminated | truncated).any() and not rewards.any()
        assert not torch.equal(over["input_ids"][1], after["input_ids"][1])

    def test_next_step_ignores_the_action_of_the_reset(self) -> None:
        envs = vector_env(1, autoreset="next_step")
        _, first = envs.reset(seed=0)
        _, _, terminated, _, info = envs.step([EOS])
        assert terminated.all() and not info["active"].any()
        obs, rewards, terminated, truncated, info = envs.step([3])
        assert not (terminated | truncated).any() and not rewards.any()
        assert info["episode_id"] == first["episode_id"] + 1
        assert obs["attention_mask"].sum() == obs["prompt_length"].sum()

    def test_reset_mask_in_next_step_mode_does_not_deal_twice(self) -> None:
        envs = vector_env(2, autoreset="next_step")
        envs.reset(seed=0)
        envs.step([EOS, EOS])
        _, info = envs.reset(options={"reset_mask": torch.tensor([True, False])})
        assert info["episode_id"].tolist() == [1, 0]
        *_, info = envs.step([1, 1])
        assert info["episode_id"].tolist() == [1, 1]
        assert info["active"].all()

    def test_final_observation_is_the_whole_text(self) -> None:
        envs = vector_env(2)
        obs, _ = envs.reset(seed=0)
        prompt = obs["input_ids"][0, : obs["prompt_length"][0]].tolist()
        envs.step([4, 1])
        _, _, _, _, info = envs.step([EOS, 1])
        final, n = info["final_obs"], len(prompt) + 2
        assert info["_final_obs"].tolist() == [True, False]
        assert final["input_ids"][0, :n].tolist() == [*prompt, 4, EOS]
        assert final["attention_mask"][0].tolist() == [1] * n + [0] * (envs.max_length - n)
        assert info["final_info"]["episode_id"][0] == 0 and info["episode_id"][0] == 1

    @pytest.mark.parametrize("statistics", [True, False])
    def test_with_numpy_the_ends_have_gymnasiums_form(self, statistics: bool) -> None:
        """final_obs and final_info are those of SyncVectorEnv to the last key, mask, type and zero."""
        changes = {"episode_statistics": statistics}
        native = make_vec(3, arrays="numpy", **changes)
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        upstream = make_vec(3, "sync", vector_kwargs=mode, **changes)
        native.reset(seed=3)
        upstream.reset(seed=3)
        ends = 0
        for actions in random_actions(40, 3):
            ours, theirs = native.step(actions)[-1], upstream.step(actions)[-1]
            assert ("final_obs" in ours) == ("final_obs" in theirs)
            if "final_obs" not in ours:
                continue
            ends += 1
            for info in (ours, theirs):
                info["final_info"].get("episode", {}).pop("t", None)
            for name in ("final_obs", "final_info", "_final_obs", "_final_info"):
                assert_same(ours[name], theirs[name], name)
            row = int(np.flatnonzero(ours["_final_obs"])[0])
            assert native.single_observation_space.contains(ours["final_obs"][row])
        assert ends > 10

    def test_final_observations_of_numpy_are_of_their_own(self) -> None:
        envs = vector_env(2, arrays="numpy")
        envs.reset(seed=0)
        *_, info = envs.step([EOS, 1])
        kept = pickle.dumps(info)
        envs.step([EOS, EOS])
        assert pickle.dumps(info) == kept

    @pytest.mark.parametrize("autoreset", AUTORESET_MODES)
    def test_the_mode_is_an_attribute_as_gymnasiums_own(self, autoreset: str) -> None:
        envs = make_vec(2, autoreset=autoreset)
        assert envs.autoreset_mode is envs.unwrapped.autoreset_mode is AUTORESET_MODES[autoreset]
        assert envs.metadata["autoreset_mode"] is envs.autoreset_mode
        upstream = make_vec(2, "sync", vector_kwargs={"autoreset_mode": AUTORESET_MODES[autoreset]})
        assert upstream.autoreset_mode is envs.autoreset_mode

    @pytest.mark.parametrize("autoreset", AUTORESET_MODES)
    def test_the_mode_may_be_a_member_of_gymnasiums_enumeration(self, autoreset: str) -> None:
        for make in (make_vec, vector_env):
            envs = make(2, autoreset=AUTORESET_MODES[autoreset])
            assert envs.unwrapped.autoreset == autoreset
            assert envs.unwrapped.autoreset_mode is AUTORESET_MODES[autoreset]

    @pytest.mark.parametrize("autoreset", ["SAME_STEP", "NextStep", "never"])
    def test_an_unknown_mode_lists_those_that_there_are(self, autoreset: str) -> None:
        words = f"autoreset must be one of 'same_step', 'next_step', 'disabled', got '{autoreset}'"
        with pytest.raises(ValueError, match=f"^{words}$"):
            make_vec(2, autoreset=autoreset)

    def test_truncation_at_the_budget_and_termination_wins(self) -> None:
        envs = vector_env(2, max_new_tokens=2)
        envs.reset(seed=0)
        envs.step([1, 1])
        _, _, terminated, truncated, _ = envs.step([EOS, 1])
        assert terminated.tolist() == [True, False]
        assert truncated.tolist() == [False, True]


class TestData:
    def test_observations_are_in_the_space_and_fresh(self) -> None:
        envs = vector_env(4, arrays="numpy")
        obs, info = envs.reset(seed=0)
        kept = []
        for actions in random_actions(30, 4):
            assert envs.observation_space.contains(obs)
            kept.append((obs, pickle.dumps(obs), info, pickle.dumps(info)))
            obs, *_, info = envs.step(actions)
        for obs, before, info, info_before in kept:
            assert pickle.dumps(obs) == before
            assert pickle.dumps(info) == info_before

    @pytest.mark.parametrize("rows", [1, 3])
    def test_changing_what_was_returned_changes_nothing(self, rows: int) -> None:
        envs, untouched = vector_env(rows), vector_env(rows)
        envs.reset(seed=0)
        untouched.reset(seed=0)
        for actions in random_actions(20, rows):
            ours, theirs = envs.step(actions), untouched.step(actions)
            for name in OBSERVATION:
                assert torch.equal(ours[0][name], theirs[0][name])
                ours[0][name].fill_(0)
            for name in INFO:
                assert torch.equal(ours[4][name], theirs[4][name])
                ours[4][name].fill_(0)
            for i in (1, 2, 3):
                assert torch.equal(ours[i], theirs[i])
                ours[i].fill_(1)

    def test_numpy_is_torch(self) -> None:
        tensors, arrays = make_vec(3), make_vec(3, arrays="numpy")
        tensors.reset(seed=0)
        arrays.reset(seed=0)
        for actions in random_actions(30, 3):
            ours, theirs = tensors.step(torch.from_numpy(actions)), arrays.step(actions)
            assert all(isinstance(part, np.ndarray) for part in (*theirs[1:4], theirs[4]["key"]))
            ended = compare_transition(tuple(numpy(part) for part in ours), theirs, 0)
            if ended.any():
                np.testing.assert_array_equal(ours[4]["episode"]["r"], theirs[4]["episode"]["r"])
                assert theirs[4]["episode"]["t"].dtype == np.float32

    def test_statistics_count_what_wrappers_pay(self) -> None:
        envs = make_vec(2)
        envs.reset(seed=0)
        paid = np.zeros(2)
        for actions in random_actions(40, 2):
            _, rewards, terminated, truncated, info = envs.step(actions)
            paid += rewards.numpy()
            ended = (terminated | truncated).numpy()
            if ended.any():
                np.testing.assert_allclose(info["episode"]["r"].numpy()[ended], paid[ended], rtol=1e-5)
                assert (info["episode"]["t"].numpy()[ended] > 0).all()
            paid[ended] = 0

    def test_without_statistics(self) -> None:
        envs = make_vec(1, episode_statistics=False)
        envs.reset(seed=0)
        *_, info = envs.step([EOS])
        assert "episode" not in info and "episode" not in info["final_info"]

    def test_padding_is_the_tokenizers(self) -> None:
        envs = vector_env(2)
        obs, _ = envs.reset(seed=0)
        assert (obs["input_ids"][obs["attention_mask"] == 0] == TOKENIZER.pad_token_id).all()

    def test_the_same_seed_after_anything_else(self) -> None:
        """Nothing of earlier episodes is left, in rows without an episode neither."""
        used, fresh = vector_env(3), vector_env(3)
        used.reset(seed=8)
        for actions in random_actions(20, 3):
            used.step(actions)
        for options in (None, {"episodes": 2}):
            a, b = used.reset(seed=3, options=options), fresh.reset(seed=3, options=options)
            assert all(torch.equal(a[0][name], b[0][name]) for name in OBSERVATION)
            assert all(torch.equal(a[1][name], b[1][name]) for name in INFO)

    def test_a_seed_is_drawn_once_if_none_is_given(self) -> None:
        first, second = vector_env(1), vector_env(1)
        keys = [int(envs.reset()[1]["key"]) for envs in (first, second)]
        assert keys[0] != keys[1]
        assert first.reset()[1]["episode_id"] == 1


class TestTermination:
    def test_stop_token_ids(self) -> None:
        envs = vector_env(3, stop_token_ids=[2, 5])
        envs.reset(seed=0)
        _, _, terminated, truncated, _ = envs.step([2, 5, EOS])
        assert terminated.tolist() == [True, True, False]
        assert not truncated.any()

    def test_no_stop_token_at_all(self) -> None:
        envs = vector_env(1, stop_token_ids=[], max_new_tokens=3)
        envs.reset(seed=0)
        ends = [envs.step([EOS])[2:4] for _ in range(3)]
        assert [(bool(a), bool(b)) for a, b in ends] == [(False, False), (False, False), (False, True)]

    def test_min_new_tokens(self) -> None:
        """An early stop token ends nothing; a policy knows by the legality that it is not its to choose."""
        envs = vector_env(1, min_new_tokens=2)
        envs.reset(seed=0)
        assert not envs.step([EOS])[2] and not envs.step([EOS])[2]
        assert envs.action_masks().all()
        assert envs.step([EOS])[2]

    def test_masks_of_legal_tokens(self) -> None:
        envs = vector_env(2, min_new_tokens=1, suppressed_tokens=[0])
        envs.reset(seed=0)
        envs.step([1, 1])
        envs.reset(options={"reset_mask": np.array([True, False])})
        expected = np.ones((2, V), dtype=bool)
        expected[:, 0] = False
        expected[0, EOS] = False
        np.testing.assert_array_equal(envs.action_masks(), expected)

    def test_stop_string(self) -> None:
        envs = vector_env(3, stop_strings=["bad"], max_new_tokens=6)
        envs.reset(seed=0)
        texts = np.array([TOKENIZER(text)["input_ids"] for text in ("abadab", "babcda", "bababa")])
        terminated = np.stack([envs.step(actions)[2].numpy() for actions in texts.T])
        assert np.flatnonzero(terminated[:, 0]).tolist() == [3]
        assert not terminated[:, 1:].any()

    def test_stop_string_counts_the_response_only(self) -> None:
        prompts = PromptSet.from_texts(["ba"], TOKENIZER)
        envs = vector_env(1, prompts=prompts, stop_strings=["bad"])
        envs.reset(seed=0)
        assert not envs.step(TOKENIZER("d")["input_ids"])[2]

    def test_stop_string_over_several_tokens_and_characters_over_several_tokens(self) -> None:
        tokenizer = byte_level_tokenizer()
        prompts = PromptSet.from_texts(["x"], tokenizer)
        envs = vector_env(
            1, prompts=prompts, tokenizer=tokenizer, stop_strings=["é.", "\n\n"], max_new_tokens=30
        )
        for text, end in (("né.", 4), ("né\n\n", 4), ("né \n.\n\n", 7)):
            envs.reset(seed=0)
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == end
            over = [bool(envs.step([token])[2]) for token in ids]
            assert over == [False] * (end - 1) + [True], text


class TestRender:
    def test_ansi(self) -> None:
        envs = make_vec(2, render_mode="ansi", autoreset="disabled", shuffle=False)
        envs.reset(seed=0)
        envs.step([1, EOS])
        assert envs.render() == (
            "[0] a | b  length=+0.000  repetition=+0.000",
            "[0] a | <eos>  (over)  length=+0.500  repetition=+0.000",
        )

    def test_human_shows_ends_in_same_step_mode(self, capsys: pytest.CaptureFixture[str]) -> None:
        envs = vector_env(1, render_mode="human", shuffle=False)
        envs.reset(seed=0)
        envs.step([EOS])
        assert capsys.readouterr().out == "[0] a | \n[0] a | <eos>  (over)\n"

    def test_generated_text_can_not_drive_the_terminal(self) -> None:
        tokenizer = byte_level_tokenizer()
        envs = vector_env(
            1,
            prompts=PromptSet.from_texts(["x"], tokenizer),
            tokenizer=tokenizer,
            render_mode="ansi",
            max_new_tokens=30,
        )
        envs.reset(seed=0)
        for token in tokenizer("\x1b[31m\n\u202eé")["input_ids"]:
            envs.step([token])
        assert envs.render() == ("[0] x | \\x1b[31m\\n\\u202eé",)

    def test_rows_without_an_episode(self) -> None:
        envs = vector_env(2, render_mode="ansi")
        envs.reset(seed=0, options={"episodes": 1})
        assert envs.render()[1] == "(no episode)"

    def test_needs_a_mode(self) -> None:
        envs = vector_env(1)
        envs.reset(seed=0)
        with pytest.raises(ValueError, match="render needs render_mode"):
            envs.render()


class TestPickling:
    @pytest.mark.parametrize("autoreset", AUTORESET_MODES)
    def test_in_the_middle_of_everything(self, autoreset: str) -> None:
        envs = make_vec(3, autoreset=autoreset)
        obs, info = envs.reset(seed=4, options={"episodes": 10})
        for _ in range(3):
            obs, *_, info = envs.step(by_key(obs, info))
        again = pickle.loads(pickle.dumps(envs))
        for _ in range(20):
            actions = by_key(obs, info)
            ours, theirs = envs.step(actions), again.step(actions)
            assert all(torch.equal(ours[0][name], theirs[0][name]) for name in OBSERVATION)
            assert all(torch.equal(ours[i], theirs[i]) for i in (1, 2, 3))
            assert all(torch.equal(ours[4][name], theirs[4][name]) for name in INFO)
            if "episode" in ours[4]:
                assert torch.equal(ours[4]["episode"]["r"], theirs[4]["episode"]["r"])
                assert float(theirs[4]["episode"]["t"].max()) < 60
            obs, info = ours[0], ours[4]


class TestUpstreamStatistics:
    @pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
    @pytest.mark.parametrize("key", ["episode", "theirs"])
    def test_counts_exactly_n_episodes(self, autoreset: str, key: str) -> None:
        n = 11
        envs = RecordEpisodeStatistics(
            make_vec(4, arrays="numpy", autoreset=autoreset, episode_statistics=key != "episode"),
            stats_key=key,
        )
        obs, info = envs.reset(seed=1, options={"episodes": n})
        for _ in range(60):
            obs, *_, info = envs.step(by_key(obs, info))
        assert envs.episode_count == n
        assert not info["active"].any()


class TestBadInput:
    def test_step_before_reset(self) -> None:
        with pytest.raises(ResetNeeded, match=r"step\(\) was called before reset"):
            vector_env(2).step([0, 0])

    @pytest.mark.parametrize(
        ("actions", "error", "message"),
        [
            ([0.5, 1.0], TypeError, r"actions must be integers \(token ids\), got float64"),
            (torch.tensor([0.0, 1.0]), TypeError, "got torch.float32"),
            (np.array([True, False]), TypeError, "got bool"),
            (["a", "b"], TypeError, "must be integers"),
            ([0], ValueError, r"actions must have shape \(2,\), got \(1,\)"),
            (1, ValueError, r"got \(\)"),
            (torch.zeros(2, 1, dtype=torch.int64), ValueError, r"got \(2, 1\)"),
            ([0, V], ValueError, rf"actions\[1\] must be a token id in \[0, {V}\), got {V}"),
            ([-1, 0], ValueError, r"actions\[0\] must be a token id in .* got -1"),
        ],
    )
    def test_actions(self, actions: Any, error: type[Exception], message: str) -> None:
        envs = vector_env(2)
        envs.reset(seed=0)
        with pytest.raises(error, match=message):
            envs.step(actions)
        obs, *_ = envs.step([1, 2])  # a refused step leaves no trace
        assert obs["attention_mask"].sum() == obs["prompt_length"].sum() + 2

    def test_actions_of_inactive_rows_are_not_looked_at(self) -> None:
        envs = vector_env(2, autoreset="disabled")
        envs.reset(seed=0)
        envs.step([EOS, 1])
        obs, *_ = envs.step([-7, 1])
        assert (obs["attention_mask"].sum(-1) - obs["prompt_length"]).tolist() == [1, 2]

    def test_read_only_arrays_do(self) -> None:
        actions = np.array([1, 2])
        actions.flags.writeable = False
        envs = vector_env(2)
        envs.reset(seed=0)
        envs.step(actions)

    @pytest.mark.parametrize(
        ("reset", "message"),
        [
            ({"options": {"episode": 3}}, "options must be one of 'episodes'.*got 'episode'"),
            ({"options": {"rank": 1}}, r"options \['rank'\] need options\['episodes'\]"),
            ({"options": {"episodes": 0}}, r"options\['episodes'\] must be >= 1, got 0"),
            (
                {"options": {"episodes": 4, "rank": 2, "world_size": 2}},
                r"rank'\] must lie in \[0, world_size=2\)",
            ),
            ({"options": {"episodes": 4, "first_ticket": -1}}, r"first_ticket'\] must be >= 0, got -1"),
            ({"options": {"reset_mask": [1, 0]}}, r"reset_mask'\] must be a boolean array of shape \(2,\)"),
            ({"options": {"reset_mask": np.ones(3, dtype=bool)}}, r"of shape \(3,\)"),
            (
                {"options": {"reset_mask": np.ones(2, dtype=bool), "episodes": 2}},
                "can't be combined with 'reset_mask'",
            ),
            ({"seed": [1]}, "seed must be an integer or a list of 2 seeds, got 1"),
            ({"seed": [1, -2]}, r"seed\[1\] must be >= 0, got -2"),
        ],
    )
    def test_reset(self, reset: dict[str, Any], message: str) -> None:
        envs = vector_env(2)
        envs.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            envs.reset(**reset)

    def test_episodes_must_be_an_integer(self) -> None:
        with pytest.raises(TypeError, match=r"options\['episodes'\] must be an integer, got 2.5"):
            vector_env(2).reset(options={"episodes": 2.5})

    def test_reset_mask_before_any_reset(self) -> None:
        with pytest.raises(ResetNeeded, match="full reset"):
            vector_env(1).reset(options={"reset_mask": np.ones(1, dtype=bool)})

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_envs": 0}, "num_envs must be >= 1, got 0"),
            ({"autoreset": "later"}, "autoreset must be one of 'same_step', 'next_step', 'disabled'"),
            ({"arrays": "jax"}, "arrays must be one of 'torch', 'numpy', got 'jax'"),
            ({"suppressed_tokens": range(V)}, "must leave a legal token"),
            (
                {"suppressed_tokens": [i for i in range(V) if i != EOS], "min_new_tokens": 1},
                "must leave a legal",
            ),
        ],
    )
    def test_construction(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            vector_env(**kwargs)

    def test_record_and_add_reward(self) -> None:
        envs = vector_env(2)
        envs.reset(seed=0)
        with pytest.raises(ValueError, match=r"record\(log_prob=...\) must have shape \(2,\), got \(1,\)"):
            envs.record(log_prob=torch.zeros(1))
        with pytest.raises(ValueError, match=r"add_reward\('x', values\) must have shape \(2,\)"):
            envs.add_reward("x", torch.zeros(3))

    def test_after_close(self) -> None:
        envs = make_vec(2, render_mode="ansi")
        envs.reset(seed=0)
        envs.close()
        envs.close()
        for call in (lambda: envs.step([0, 0]), envs.reset, envs.render):
            with pytest.raises(ClosedEnvironmentError, match=r"\(\) was called after close\(\)"):
                call()

    @pytest.mark.parametrize("mode", ["sync", "async"])
    def test_a_kl_reward_can_not_live_in_a_vectorizer(self, mode: str) -> None:
        envs = make_vec(2, mode, rewards=[["kl", {"coef": 0.1}]])
        with pytest.raises(Exception, match="reward 'kl' needs the policy"):
            envs.reset(seed=0)
        envs.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_as_on_the_cpu() -> None:
    on_cpu, on_gpu = make_vec(3, arrays="numpy"), make_vec(3, arrays="numpy", device="cuda")
    on_cpu.reset(seed=0)
    on_gpu.reset(seed=0)
    for actions in random_actions(40, 3):
        ours, theirs = on_cpu.step(actions), on_gpu.step(actions)
        ended = compare_transition(ours, theirs, 0)
        if ended.any():
            np.testing.assert_array_equal(ours[4]["episode"]["r"], theirs[4]["episode"]["r"])


def test_device_is_where_tensors_are() -> None:
    envs = vector_env(2, device="cpu")
    obs, info = envs.reset(seed=0)
    assert {value.device for value in (*obs.values(), *info.values())} == {torch.device("cpu")}


def test_metadata_names_the_mode() -> None:
    assert vector_env(1).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_every_prompt_fits_the_observation() -> None:
    envs = vector_env(1)
    assert envs.max_length == max(map(len, PROMPTS)) + 5
