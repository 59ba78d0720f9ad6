"""What must hold for the data in an episode batch: actions, rewards and masks. Shape letters: B, L tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from textenv.episodes import EpisodeBatch


def check_actions(batch: EpisodeBatch) -> None:
    """Refuse an action without a state before it, and rewards for tokens that the policy did not choose.

    Losses read rewards at actions alone, while returns sum all of them: a reward elsewhere would be reported
    and never learned from.

    Raises:
        ValueError: naming the row (and column).
    """
    if not batch.input_ids.numel():
        return
    first = batch.action_mask[:, 0]
    if bool(first.any()):
        raise ValueError(
            "action_mask must be False in column 0, for the first token has no state before it; "
            f"got True in row {int(first.nonzero()[0])}"
        )
    for name, values in batch.tensors():
        if name == "rewards" or name.startswith("reward_terms/"):
            foreign = (values != 0) & ~batch.action_mask
            if bool(foreign.any()):
                row, column = foreign.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} must be 0 where action_mask is False (a reward is for a token that the policy "
                    f"chose), got {float(values[row, column])} in row {row}, column {column}"
                )


def check_whole(batch: EpisodeBatch) -> None:
    """All that can be checked of a batch.

    Raises:
        ValueError: see ``EpisodeBatch.validate``.
    """
    check_actions(batch)
    if bool((batch.action_mask & ~batch.attention_mask).any()):
        raise ValueError("action_mask must be False on padding (attention_mask False)")
    columns = torch.arange(batch.input_ids.shape[1], device=batch.device)
    if bool((batch.attention_mask != (columns < batch.lengths.unsqueeze(-1))).any()):
        raise ValueError("attention_mask must be right-padded: ones, then zeros")
    outside = (batch.prompt_lengths < 1) | (batch.prompt_lengths > batch.lengths)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"prompt_lengths[{row}] must lie between 1 and the length of the row, "
            f"{int(batch.lengths[row])}, got {int(batch.prompt_lengths[row])}"
        )
    if bool((batch.action_mask & (columns < batch.prompt_lengths.unsqueeze(-1))).any()):
        raise ValueError("action_mask must be False in the prompt (columns below prompt_lengths)")
