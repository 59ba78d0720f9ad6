"""``EpisodeBatch``: the trajectory format of rollouts, offline data, scoring, training and logging.

Rows are right-padded; prompt and response start at column 0 without a gap. Values per token have the columns
of ``input_ids`` and are masked by ``action_mask``. Masks are computed from lengths, not from a pad id.
Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.episodes.checks import check_actions, check_fields, check_id_rows, check_tensors, check_whole
from textenv.episodes.fields import named_tensors
from textenv.episodes.storage import errors_name, load_fields, save_fields
from textenv.episodes.texts import split_texts
from textenv.prompts.pairs import encode_pairs
from textenv.utils.checks import as_rewards, check_at_least
from textenv.utils.deprecation import warn_renamed
from textenv.utils.indexing import row_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, eq=False)
class EpisodeBatch:
    """B finished (or partial) episodes of at most L tokens, prompt then response.

    Only ``input_ids``, ``attention_mask``, ``prompt_lengths`` and ``action_mask`` are required; other
    fields have a neutral default (zero rewards, terminated, ids 0..B-1).

    Raises:
        ValueError: if a field's shape does not fit, column 0 is an action, or a reward (or a term of it)
            is not 0 where no action is; ``validate`` checks more.

    Example:
        >>> batch = EpisodeBatch.from_ids([[5, 6]], [[7, 8, 9]])
        >>> batch.input_ids.tolist(), batch.action_mask.sum(-1).tolist(), batch.last_action.tolist()
        ([[5, 6, 7, 8, 9]], [3], [4])
    """

    input_ids: Tensor
    """(B, L) int64: prompt then response, right-padded."""
    attention_mask: Tensor
    """(B, L) bool: True on tokens, False on padding."""
    prompt_lengths: Tensor
    """(B,) int64: tokens of the prompt, before the policy's first turn."""
    action_mask: Tensor
    """(B, L) bool: tokens that the policy chose. Column 0 is never an action."""
    log_probs: Tensor | None = None
    """(B, L) float: behaviour log-probs as sampled, 0 where action_mask is False."""
    values: Tensor | None = None
    """(B, L) float: V of the state before that token, 0 where action_mask is False."""
    rewards: Tensor = None  # type: ignore[assignment]
    """(B, L) float: reward for choosing that token, 0 elsewhere."""
    final_values: Tensor | None = None
    """(B,) float: V after the last token, for bootstrapping at truncation."""
    terminated: Tensor = None  # type: ignore[assignment]
    """(B,) bool: ended by EOS or a stop sequence."""
    truncated: Tensor = None  # type: ignore[assignment]
    """(B,) bool: ended by the token budget."""
    episode_id: Tensor = None  # type: ignore[assignment]
    """(B,) int64: number of the episode in its stream."""
    prompt_index: Tensor = None  # type: ignore[assignment]
    """(B,) int64: index of the prompt in the prompt set, -1 if there is none."""
    reward_terms: dict[str, Tensor] = field(default_factory=dict)
    """name -> (B, L) float: the reward of each term; they sum to ``rewards``. ``raw/name`` is the value
    before shaping and not part of the sum."""
    extras: dict[str, list[Any]] = field(default_factory=dict)
    """Task columns (references, labels): name -> list of B values."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling settings as JSON values: temperature, top_k, top_p, token constraints, weights_version."""

    check: InitVar[bool] = True
    """False skips the checks that read the data, for batches made from a checked one."""

    def __post_init__(self, check: bool) -> None:
        check_fields(self.as_dict())
        if self.input_ids.dim() != 2:
            raise ValueError(f"input_ids must have shape (B, L), got {tuple(self.input_ids.shape)}")
        rows, length = self.input_ids.shape
        device = self.input_ids.device
        defaults = {
            "rewards": lambda: torch.zeros(rows, length, device=device),
            "terminated": lambda: torch.ones(rows, dtype=torch.bool, device=device),
            "truncated": lambda: torch.zeros(rows, dtype=torch.bool, device=device),
            "episode_id": lambda: torch.arange(rows, device=device),
            "prompt_index": lambda: torch.full((rows,), -1, dtype=torch.int64, device=device),
        }
        for name, default in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, default())
        check_tensors(self.as_dict(), rows, length)
        self.attention_mask = self.attention_mask.bool()
        self.action_mask = self.action_mask.bool()
        for name, column in self.extras.items():
            if len(column) != rows:
                raise ValueError(f"extras[{name!r}] must have {rows} values, got {len(column)}")
        if check:
            check_actions(self.as_dict())

    def validate(self) -> EpisodeBatch:
        """Check all data, and return self.

        Raises:
            ValueError: naming the field and the row; see ``textenv.episodes.checks.check_whole``.
        """
        check_whole(self.as_dict())
        return self

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.input_ids.device

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens of prompt and response."""
        return self.attention_mask.sum(-1)

    @property
    def response_lengths(self) -> Tensor:
        """(B,) int64: tokens that the policy chose."""
        return self.action_mask.sum(-1)

    @property
    def last_action(self) -> Tensor:
        """(B,) int64: column of the last token that the policy chose (0 if it chose none)."""
        columns = torch.arange(self.input_ids.shape[1], device=self.device)
        return (columns * self.action_mask).amax(-1) if self.input_ids.shape[1] else self.prompt_lengths * 0

    @property
    def action_steps(self) -> Tensor:
        """(B, L) int64: at an action, the number of earlier actions in the episode."""
        return (self.action_mask.cumsum(-1) - 1).clamp_min(0)

    @property
    def turn_steps(self) -> Tensor:
        """(B, L) int64: at an action, the number of earlier actions in its turn: the step t."""
        columns = torch.arange(self.input_ids.shape[1], device=self.device).expand_as(self.action_mask)
        before = torch.where(self.action_mask, -1, columns).cummax(-1).values
        return torch.where(self.action_mask, columns - before - 1, 0)

    @property
    def returns(self) -> Tensor:
        """(B,) float: sum of the rewards of an episode."""
        return self.rewards.sum(-1)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that is given, by name; reward terms as ``reward_terms/NAME``."""
        return named_tensors(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """All fields by name: ``EpisodeBatch(**batch.as_dict())`` is the same batch."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}

    @classmethod
    def from_ids(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        rewards: Sequence[float] | Tensor | None = None,
        pad_token_id: int = 0,
        **fields_: Any,
    ) -> EpisodeBatch:
        """Build a batch from token ids; every response token is an action.

        Args:
            prompts: B lists of ids, none empty.
            responses: B lists of ids.
            rewards: (B,), at the last action of each episode.
            pad_token_id: id of padding.
            fields_: other fields of the batch.

        Raises:
            TypeError: if an id is not an integer.
            ValueError: if the counts differ, a prompt is empty, a rewarded response is empty, or an id or a
                reward is out of range.
        """
        check_id_rows(prompts, responses)
        prompt_lengths = torch.tensor([len(p) for p in prompts], dtype=torch.int64)
        lengths = prompt_lengths + torch.tensor([len(r) for r in responses], dtype=torch.int64)
        width = int(lengths.max()) if len(prompts) else 0
        input_ids = torch.full((len(prompts), width), pad_token_id, dtype=torch.int64)
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            row = torch.tensor([*prompt, *response], dtype=torch.int64)
            input_ids[i, : len(row)] = row
        columns = torch.arange(width)
        attention_mask = columns < lengths.unsqueeze(-1)
        action_mask = attention_mask & (columns >= prompt_lengths.unsqueeze(-1))
        batch = cls(
            input_ids=input_ids,
            attention_mask=attention_mask,
            prompt_lengths=prompt_lengths,
            action_mask=action_mask,
            **fields_,
        )
        if rewards is not None:
            batch.rewards = batch.at_last_action(as_rewards(rewards, len(prompts)))
        return batch

    @classmethod
    def from_texts(
        cls,
        prompts: Sequence[str],
        completions: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        rewards: Sequence[float] | Tensor | None = None,
        append_eos: bool = True,
        max_length: int | None = None,
        **fields_: Any,
    ) -> EpisodeBatch:
        """Tokenise prompts and completions separately and join them, so that the boundary is exact.

        Args:
            prompts: B strings; an empty one becomes BOS (or EOS where the tokenizer has no BOS).
            completions: B strings.
            tokenizer: a transformers tokenizer.
            rewards: (B,), at the last action of each episode.
            append_eos: end every completion with EOS, as a generated one, unless its text already does.
            max_length: longest episode in tokens; a longer one loses its end and is marked truncated.
            fields_: further fields of the batch.

        Raises:
            ValueError: see ``textenv.prompts.pairs.encode_pairs``.
        """
        prompt_ids, response_ids, cut = encode_pairs(
            prompts, completions, tokenizer, append_eos=append_eos, max_length=max_length
        )
        truncated = torch.tensor(cut, dtype=torch.bool)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        fields_.setdefault("terminated", ~truncated)
        fields_.setdefault("truncated", truncated)
        return cls.from_ids(prompt_ids, response_ids, rewards=rewards, pad_token_id=pad, **fields_)

    def at_last_action(self, per_episode: Tensor) -> Tensor:
        """Place (B,) numbers at the last action of each episode: (B,) -> (B, L), zero elsewhere.

        Raises:
            ValueError: if an episode without actions has a value other than 0.
        """
        placed = torch.zeros(self.input_ids.shape, dtype=per_episode.dtype, device=self.device)
        empty = ~self.action_mask.any(-1)
        if bool((empty & (per_episode != 0)).any()):
            raise ValueError(f"episode {int(empty.nonzero()[0])} has a reward but no action")
        return placed.scatter_(1, self.last_action.unsqueeze(-1), per_episode.unsqueeze(-1).to(placed))

    def _map(self, transform: Any, extras: dict[str, list[Any]]) -> EpisodeBatch:
        tensors = {name: transform(name, tensor) for name, tensor in self.tensors()}
        terms = {name: tensors.pop(f"reward_terms/{name}") for name in self.reward_terms}
        return EpisodeBatch(
            **tensors, reward_terms=terms, extras=extras, sampling=dict(self.sampling), check=False
        )

    def select(self, index: Tensor | Sequence[int] | slice) -> EpisodeBatch:
        """Rows by index, boolean mask or slice, trimmed to their longest episode.

        Raises:
            ValueError: if a boolean mask does not have B values.
            IndexError: if there is no such row.
        """
        index = row_index(index, len(self)).to(self.device)
        width = int(self.attention_mask[index].sum(-1).max()) if len(index) else 0
        rows = index.tolist()
        extras = {name: [column[i] for i in rows] for name, column in self.extras.items()}

        def pick(name: str, tensor: Tensor) -> Tensor:
            return tensor[index, :width] if tensor.dim() == 2 else tensor[index]

        return self._map(pick, extras)

    def to(self, device: torch.device | str) -> EpisodeBatch:
        """The same batch on another device."""
        return self._map(lambda _, tensor: tensor.to(device), dict(self.extras))

    @staticmethod
    def concat(batches: Sequence[EpisodeBatch]) -> EpisodeBatch:
        """Concatenate batches that have the same fields, reward terms, extras and sampling.

        Raises:
            ValueError: if there is no batch, or the batches differ in these.
        """
        if not batches:
            raise ValueError("concat needs at least one batch, got none")
        first = batches[0]
        names = [name for name, _ in first.tensors()]
        for batch in batches[1:]:
            other = [name for name, _ in batch.tensors()]
            if set(other) != set(names):
                raise ValueError(
                    f"batches have different fields: {sorted(set(other) ^ set(names))} is not in all"
                )
            if set(batch.extras) != set(first.extras):
                raise ValueError(
                    f"batches have different extras: {sorted(set(batch.extras) ^ set(first.extras))}"
                )
            if batch.sampling != first.sampling:
                raise ValueError(f"batches were sampled differently: {first.sampling} and {batch.sampling}")
        width = max(batch.input_ids.shape[1] for batch in batches)
        columns = [dict(batch.tensors()) for batch in batches]

        def join(name: str, tensor: Tensor) -> Tensor:
            parts = [column[name] for column in columns]
            if tensor.dim() == 2:
                parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
            return torch.cat(parts)

        extras = {name: [value for batch in batches for value in batch.extras[name]] for name in first.extras}
        return first._map(join, extras)

    def sorted_by_id(self) -> EpisodeBatch:
        """Rows in the order of ``episode_id``."""
        return self.select(torch.argsort(self.episode_id, stable=True))

    def sorted_by_ticket(self) -> EpisodeBatch:
        """Old name of ``sorted_by_id``."""
        warn_renamed("sorted_by_ticket", "sorted_by_id")
        return self.sorted_by_id()

    def token_budget_batches(
        self, max_tokens: int, *, sort: bool = True
    ) -> Iterator[tuple[Tensor, EpisodeBatch]]:
        """Split into micro-batches of at most ``max_tokens`` padded tokens, but at least one row.

        Args:
            max_tokens: budget, rows times the longest length.
            sort: group rows of similar length, which leaves little padding.

        Yields:
            (index (b,) int64 on the CPU, ``batch.select(index)``).
        """
        check_at_least("max_tokens", max_tokens, 1)
        lengths = self.lengths.cpu()
        order = torch.argsort(lengths, descending=True, stable=True) if sort else torch.arange(len(self))
        start, sizes = 0, lengths[order].tolist()
        while start < len(sizes):
            longest, stop = sizes[start], start + 1
            while stop < len(sizes):
                wider = max(longest, sizes[stop])
                if wider * (stop + 1 - start) > max_tokens:
                    break
                longest, stop = wider, stop + 1
            index = order[start:stop]
            yield index, self.select(index)
            start = stop

    def texts(
        self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True
    ) -> list[tuple[str, str]]:
        """B pairs (prompt, completion) whose sum is the decoded row; see ``episodes.texts.split_texts``."""
        ids = [row[:n] for row, n in zip(self.input_ids.tolist(), self.lengths.tolist(), strict=True)]
        starts = self.prompt_lengths.tolist()
        return split_texts(ids, starts, tokenizer, skip_special_tokens=skip_special_tokens)

    def prompt_texts(self, tokenizer: PreTrainedTokenizerBase, **options: bool) -> list[str]:
        """The B prompts as text; ``options`` are those of ``texts``."""
        return [prompt for prompt, _ in self.texts(tokenizer, **options)]

    def completion_texts(self, tokenizer: PreTrainedTokenizerBase, **options: bool) -> list[str]:
        """The B responses (all after the first prompt) as text; ``options`` are those of ``texts``."""
        return [completion for _, completion in self.texts(tokenizer, **options)]

    def save(self, path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write to ``path``: JSON lines if it ends in ``.jsonl``, else a ``datasets`` Arrow folder.

        Args:
            path: an older file or saved folder there is replaced.
            tokenizer: if given, the texts are written, too, for people who read the file.

        Raises:
            ValueError: if the batch is not valid, or has no episode and goes to JSON lines.
            TypeError: if extras or sampling are not JSON values.
            FileExistsError: if ``path`` is a folder with other content.
        """
        self.validate()
        save_fields(self.as_dict(), path, texts=None if tokenizer is None else self.texts(tokenizer))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EpisodeBatch:
        """Read what ``save`` wrote; the batch is on the CPU.

        Raises:
            FileNotFoundError: if ``path`` or a file of the folder is missing.
            ValueError: if the file is damaged or holds something else; the message names it (and the line).
        """
        with errors_name(path):
            return cls(**load_fields(path)).validate()
