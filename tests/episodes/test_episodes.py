"""EpisodeBatch and PreferenceBatch: masks, selection, joining, batching; padding and order change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch

id_lists = st.lists(st.integers(1, 50), min_size=1, max_size=6)
pairs_of_ids = st.lists(st.tuples(id_lists, st.lists(st.integers(1, 50), max_size=6)), min_size=1, max_size=6)


def build(pairs: list[tuple[list[int], list[int]]], **fields: Any) -> EpisodeBatch:
    """A batch with every field set; the numbers are quarters, so float sums are exact in any order."""
    batch = EpisodeBatch.from_ids([p for p, _ in pairs], [r for _, r in pairs], **fields)
    numbers = batch.input_ids.float() * batch.action_mask
    batch.log_probs, batch.values, batch.rewards = -numbers, numbers * 2, numbers / 4
    batch.final_values = batch.lengths.float()
    batch.reward_terms = {"a": batch.rewards * 0.25, "b": batch.rewards * 0.75, "raw/a": numbers}
    batch.extras = {"pair": list(pairs)}
    batch.sampling = {"temperature": 1.0}
    return batch


def assert_same(left: EpisodeBatch, right: EpisodeBatch) -> None:
    tensors, others = dict(left.tensors()), dict(right.tensors())
    assert list(tensors) == list(others)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert left.extras == right.extras and left.sampling == right.sampling


def test_masks_come_from_lengths() -> None:
    batch = EpisodeBatch.from_ids([[5, 0], [7]], [[0, 0], []], pad_token_id=0).validate()
    assert batch.input_ids.tolist() == [[5, 0, 0, 0], [7, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert batch.action_mask.tolist() == [[False, False, True, True], [False] * 4]
    assert batch.lengths.tolist() == [4, 1] and batch.response_lengths.tolist() == [2, 0]
    assert batch.last_action.tolist() == [3, 0]
    assert batch.action_steps[0].tolist() == [0, 0, 0, 1]
    assert batch.episode_id.tolist() == [0, 1] and batch.prompt_index.tolist() == [-1, -1]


def test_action_steps_count_actions_only() -> None:
    batch = EpisodeBatch.from_ids([[1]], [[2, 3, 4, 5]])
    batch.action_mask[0, 2] = False
    assert batch.action_steps[0][batch.action_mask[0]].tolist() == [0, 1, 2]


def test_turn_steps_begin_anew_after_tokens_of_others() -> None:
    batch = EpisodeBatch.from_ids([[1, 1], [1]], [[2, 3, 4, 5, 6, 7], [2, 3]])
    assert batch.turn_steps.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 0, 0, 0, 0]]
    assert torch.equal(batch.turn_steps, torch.where(batch.action_mask, batch.action_steps, 0))
    batch.action_mask[0, 4:6] = False
    assert batch.turn_steps[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


@given(pairs_of_ids)
def test_padding_changes_nothing(pairs: list) -> None:
    tight = build(pairs)
    wide = EpisodeBatch.concat([build(pairs, pad_token_id=9), build([([1] * 20, [2] * 20)])])
    assert wide.input_ids.shape[1] == 40
    trimmed = wide.select(range(len(pairs)))
    assert trimmed.input_ids.shape == tight.input_ids.shape
    for name, tensor in tight.tensors():
        other = dict(trimmed.tensors())[name]
        mask = tight.attention_mask if tensor.dim() == 2 else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[mask], other[mask]), name
    for name in ("lengths", "response_lengths", "last_action", "returns"):
        assert torch.equal(getattr(tight, name), getattr(wide, name)[: len(pairs)]), name
    per_episode = torch.arange(1.0, len(pairs) + 1) * tight.action_mask.any(-1)
    assert torch.equal(tight.at_last_action(per_episode).sum(-1), per_episode)


@given(pairs_of_ids, st.randoms(use_true_random=False))
def test_permutation_changes_nothing(pairs: list, random: Any) -> None:
    order = list(range(len(pairs)))
    random.shuffle(order)
    batch = build(pairs)
    shuffled = batch.select(order)
    assert shuffled.extras["pair"] == [pairs[i] for i in order]
    assert shuffled.episode_id.tolist() == order
    assert_same(shuffled.sorted_by_id(), batch)
    for name in ("lengths", "last_action", "returns"):
        assert torch.equal(getattr(shuffled, name), getattr(batch, name)[order]), name


@given(pairs_of_ids, st.integers(1, 6))
def test_concat_puts_back_what_select_took_apart(pairs: list, at: int) -> None:
    batch = build(pairs)
    assert_same(EpisodeBatch.concat([batch.select(slice(0, at)), batch.select(slice(at, None))]), batch)


@given(pairs_of_ids, st.integers(1, 60), st.booleans())
def test_token_budget_batches_hold_every_row_once_within_the_budget(
    pairs: list, budget: int, sort: bool
) -> None:
    batch = build(pairs)
    seen: list[int] = []
    for index, part in batch.token_budget_batches(budget, sort=sort):
        assert_same(part, batch.select(index))
        assert part.input_ids.numel() <= budget or len(part) == 1
        seen += index.tolist()
    assert sorted(seen) == list(range(len(pairs)))
    if not sort:
        assert seen == list(range(len(pairs)))


def test_sorting_by_length_saves_padding() -> None:
    batch = EpisodeBatch.from_ids([[1]] * 8, [[2] * (1 if i % 2 else 9) for i in range(8)])
    cost = {
        sort: sum(part.input_ids.numel() for _, part in batch.token_budget_batches(40, sort=sort))
        for sort in (True, False)
    }
    assert cost == {True: 48, False: 80}


def test_token_budget_edge_cases() -> None:
    batch = EpisodeBatch.from_ids([[1]] * 3, [[2] * 9] * 3)
    assert [len(part) for _, part in batch.token_budget_batches(1)] == [1, 1, 1]
    assert [len(part) for _, part in batch.token_budget_batches(20)] == [2, 1]
    assert list(batch.select([]).token_budget_batches(5)) == []
    with pytest.raises(ValueError, match="max_tokens must be >= 1, got 0"):
        next(batch.token_budget_batches(0))


def test_rows_can_be_chosen_in_every_way() -> None:
    batch = build([([1], [2]), ([3], [4, 4]), ([5, 5], [6])])
    for index in ([2, 0], torch.tensor([2, 0]), torch.tensor([-1, 0], dtype=torch.int32)):
        assert batch.select(index).input_ids.tolist() == [[5, 5, 6], [1, 2, 0]]
    for mask in ([True, False, True], torch.tensor([True, False, True])):
        assert batch.select(mask).episode_id.tolist() == [0, 2]
    assert batch.select(slice(None, None, -1)).episode_id.tolist() == [2, 1, 0]
    assert batch.select([1, 1]).extras["pair"] == [([3], [4, 4])] * 2
    assert batch.select([0]).input_ids.shape == (1, 2)
    empty = batch.select([])
    assert len(empty) == 0 and empty.input_ids.shape == (0, 0) and empty.extras == {"pair": []}
    assert empty.last_action.shape == (0,) and empty.returns.shape == (0,)
    assert empty.validate() is empty


def test_bad_rows_are_refused() -> None:
    batch = build([([1], [2]), ([3], [4])])
    with pytest.raises(ValueError, match=r"a boolean mask of rows must have shape \(2,\), got \(1,\)"):
        batch.select([True])
    with pytest.raises(TypeError, match=r"integers, got torch\.float32"):
        batch.select(torch.tensor([0.5]))
    with pytest.raises(IndexError):
        batch.select([2])


def test_selection_does_not_share_memory() -> None:
    batch = build([([1], [2]), ([3], [4])])
    part = batch.select([0])
    part.rewards += 1
    part.extras["pair"][0] = None
    part.sampling["temperature"] = 2.0
    assert batch.rewards[0, 0] == 0 and batch.extras["pair"][0] == ([1], [2])
    assert batch.sampling == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.zeros(1, 2)}, r"rewards must have shape \(1, 3\), got \(1, 2\)"),
        ({"terminated": torch.zeros(2)}, r"terminated must have shape \(1,\), got \(2,\)"),
        ({"reward_terms": {"kl": torch.zeros(1)}}, r"reward_terms/kl must have shape \(1, 3\), got \(1,\)"),
        ({"final_values": torch.zeros(1, 3)}, r"final_values must have shape \(1,\), got \(1, 3\)"),
        ({"extras": {"a": [1, 2]}}, r"extras\['a'\] must have 1 values, got 2"),
        ({"input_ids": torch.zeros(3)}, r"input_ids must have shape \(B, L\), got \(3,\)"),
    ],
)
def test_wrong_shapes_are_refused(change: dict, message: str) -> None:
    tensors = dict(EpisodeBatch.from_ids([[1]], [[2, 3]]).tensors())
    with pytest.raises(ValueError, match=message):
        EpisodeBatch(**(tensors | change))


TWO_TURNS: dict = {
    "input_ids": torch.ones(2, 5, dtype=torch.int64),
    "attention_mask": torch.ones(2, 5, dtype=torch.bool),
    "action_mask": torch.tensor([[0, 0, 1, 0, 1], [0, 1, 0, 1, 1]]),
    "prompt_lengths": torch.tensor([2, 1]),
}


@pytest.mark.parametrize("name", ["rewards", "reward_terms/paid"])
@pytest.mark.parametrize(("row", "column"), [(0, 1), (0, 3), (1, 2), (1, 0)])
@pytest.mark.parametrize("value", [0.5, -1.0, float("nan")])
def test_a_reward_for_a_token_of_others_is_refused(name: str, row: int, column: int, value: float) -> None:
    values = torch.zeros(2, 5)
    values[:, 4] = 1.0
    given = {"rewards": values} if name == "rewards" else {"reward_terms": {"paid": values}}
    EpisodeBatch(**TWO_TURNS, **given)
    values[row, column] = value
    message = f"{name} must be 0 where action_mask is False .*, got {value} in row {row}, column {column}"
    with pytest.raises(ValueError, match=message):
        EpisodeBatch(**TWO_TURNS, **given)
    good = EpisodeBatch(**TWO_TURNS)
    for key, tensor in given.items():
        setattr(good, key, tensor)
    with pytest.raises(ValueError, match=message):
        good.validate()


def test_an_action_without_a_state_before_it_is_refused_when_a_batch_is_made() -> None:
    mask = TWO_TURNS["action_mask"].clone()
    mask[1, 0] = 1
    with pytest.raises(ValueError, match=r"action_mask must be False in column 0, .*got True in row 1"):
        EpisodeBatch(**{**TWO_TURNS, "action_mask": mask})
    assert len(EpisodeBatch(**{name: tensor[:0] for name, tensor in TWO_TURNS.items()})) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("action_mask", [[1, 1, 1, 0]], "must be False in column 0"),
        ("action_mask", [[0, 0, 1, 1]], "must be False on padding"),
        ("action_mask", [[0, 1, 1, 0]], "must be False in the prompt"),
        ("attention_mask", [[1, 0, 1, 0]], "must be right-padded"),
        ("attention_mask", [[0, 1, 1, 1]], "must be right-padded"),
        (
            "prompt_lengths",
            [0],
            r"prompt_lengths\[0\] must lie between 1 and the length of the row, 3, got 0",
        ),
        (
            "prompt_lengths",
            [4],
            r"prompt_lengths\[0\] must lie between 1 and the length of the row, 3, got 4",
        ),
    ],
)
def test_validate_names_what_is_wrong(name: str, value: list, message: str) -> None:
    fields = {
        "input_ids": torch.ones(1, 4, dtype=torch.int64),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "action_mask": torch.tensor([[0, 0, 1, 0]]),
        "prompt_lengths": torch.tensor([2]),
    }
    EpisodeBatch(**fields).validate()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        EpisodeBatch(**(fields | {name: torch.tensor(value)})).validate()  # type: ignore[arg-type]


def test_concat_refuses_batches_that_do_not_fit() -> None:
    batch = build([([1], [2])])
    with pytest.raises(ValueError, match="at least one batch, got none"):
        EpisodeBatch.concat([])
    other = build([([1], [2])])
    other.values = None
    with pytest.raises(ValueError, match=r"different fields: \['values'\] is not in all"):
        EpisodeBatch.concat([batch, other])
    other = build([([1], [2])])
    del other.reward_terms["b"]
    with pytest.raises(ValueError, match=r"\['reward_terms/b'\] is not in all"):
        EpisodeBatch.concat([batch, other])
    other = build([([1], [2])])
    other.extras["more"] = [1]
    with pytest.raises(ValueError, match=r"different extras: \['more'\]"):
        EpisodeBatch.concat([batch, other])
    other = build([([1], [2])])
    other.sampling["temperature"] = 0.5
    with pytest.raises(ValueError, match="sampled differently"):
        EpisodeBatch.concat([batch, other])


def test_concat_of_empty_and_single_batches() -> None:
    batch = build([([1], [2]), ([3, 3], [4])])
    assert_same(EpisodeBatch.concat([batch]), batch)
    assert_same(EpisodeBatch.concat([batch.select([]), batch]), batch)
    assert len(EpisodeBatch.concat([batch.select([]), batch.select([])])) == 0


def test_rewards_are_at_the_last_action() -> None:
    batch = EpisodeBatch.from_ids([[1, 1], [2]], [[3], [4, 5, 6]], rewards=[0.5, -1])
    assert batch.rewards.tolist() == [[0, 0, 0.5, 0], [0, 0, 0, -1]]
    assert batch.returns.tolist() == [0.5, -1]
    with pytest.raises(ValueError, match="episode 1 has a reward but no action"):
        EpisodeBatch.from_ids([[1], [2]], [[3], []], rewards=[1.0, 1.0])
    assert EpisodeBatch.from_ids([[1], [2]], [[3], []], rewards=[1.0, 0.0]).returns.tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"rewards must have shape \(2,\), got \(1,\)"):
        EpisodeBatch.from_ids([[1], [2]], [[3], [4]], rewards=[1.0])


def test_from_ids_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty; prepend BOS or EOS"):
        EpisodeBatch.from_ids([[1], []], [[2], [3]])
    with pytest.raises(ValueError, match=r"responses must have as many rows as prompts \(1\), got 2"):
        EpisodeBatch.from_ids([[1]], [[2], [3]])
    assert len(EpisodeBatch.from_ids([], [])) == 0


def test_from_texts_joins_at_the_exact_boundary(byte_tokenizer: Any) -> None:
    batch = EpisodeBatch.from_texts(["ab", ""], ["c", "dü"], byte_tokenizer, rewards=[1, 2]).validate()
    assert batch.prompt_texts(byte_tokenizer) == ["ab", ""]
    assert batch.completion_texts(byte_tokenizer) == ["c", "dü"]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.input_ids[1, 0] == byte_tokenizer.bos_token_id
    assert batch.input_ids[torch.arange(2), batch.last_action].tolist() == [byte_tokenizer.eos_token_id] * 2
    assert batch.terminated.all() and not batch.truncated.any()
    assert batch.returns.tolist() == [1.0, 2.0]
    assert batch.completion_texts(byte_tokenizer, skip_special_tokens=False)[0] == "c</s>"


def test_from_texts_does_not_repeat_eos(byte_tokenizer: Any) -> None:
    batch = EpisodeBatch.from_texts(["a</s>"], ["b</s>"], byte_tokenizer)
    assert byte_tokenizer.decode(batch.input_ids[0]) == "a</s>b</s>"
    assert batch.prompt_lengths.tolist() == [2] and batch.response_lengths.tolist() == [2]


def test_from_texts_cuts_and_marks(byte_tokenizer: Any) -> None:
    batch = EpisodeBatch.from_texts(["ab", "ab"], ["cdef", "c"], byte_tokenizer, max_length=4)
    assert batch.completion_texts(byte_tokenizer) == ["cd", "c"]
    assert batch.truncated.tolist() == [True, False] and batch.terminated.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"prompts\[0\] has 2 tokens, which leaves no room .* max_length=2"):
        EpisodeBatch.from_texts(["ab"], ["c"], byte_tokenizer, max_length=2)


def test_from_texts_edge_cases(byte_tokenizer: Any) -> None:
    assert len(EpisodeBatch.from_texts([], [], byte_tokenizer)) == 0
    with pytest.raises(ValueError, match=r"completions must have as many rows as prompts \(1\), got 0"):
        EpisodeBatch.from_texts(["a"], [], byte_tokenizer)
    bare = EpisodeBatch.from_texts(["a"], [""], byte_tokenizer, append_eos=False)
    assert bare.response_lengths.tolist() == [0]


def test_preferences_check_their_sides(byte_tokenizer: Any) -> None:
    pairs = PreferenceBatch.from_texts(
        ["a", "b"], ["c", "dd"], ["e", "f"], byte_tokenizer, margin=torch.ones(2)
    )
    assert len(pairs) == 2
    part = pairs.select([False, True])
    assert part.chosen.completion_texts(byte_tokenizer) == ["dd"] and part.margin is not None
    assert part.margin.shape == (1,) and part.label is None
    assert pairs.select(slice(None, None, -1)).rejected.completion_texts(byte_tokenizer) == ["f", "e"]
    assert pairs.to("cpu").chosen.input_ids.device.type == "cpu"
    with pytest.raises(ValueError, match="rejected must have 2 episodes like chosen, got 1"):
        PreferenceBatch(chosen=pairs.chosen, rejected=part.rejected)
    with pytest.raises(ValueError, match=r"label must have shape \(2,\), got \(3,\)"):
        PreferenceBatch(chosen=pairs.chosen, rejected=pairs.rejected, label=torch.ones(3))
