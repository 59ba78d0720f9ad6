"""The task "prompts": the user's prompts, from a file, a data set, the hub or a list."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textenv.data.held_out import split_off
from textenv.data.prompt_records import read_prompts
from textenv.data.records import Records, load_columns
from textenv.data.sources import HELD_OUT_SHARE, VALIDATION, may_be_hub_id, splits_of
from textenv.modeling.pretrained import load_pretrained
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.utils.checks import check_at_least, check_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_NEW_TOKENS = 64


@register_task("prompts")
def build_prompts(
    split: str | None = "train",
    data: Any = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    prompt_column: str | None = None,
    rewards: Sequence[Any] = (),
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    max_prompt_tokens: int | None = None,
    limit: int | None = None,
    validation: float = HELD_OUT_SHARE,
) -> TaskData:
    """Your own prompts: a file, data set, hub id or list; further columns reach the rewards.

    Args:
        split: of a hub id, a DatasetDict or a folder with several. In a source that has no validation split
            "validation" is split off "train". None is all of "train", or of the only split.
        data: what ``textenv.data.load_columns`` reads (a path, hub id, data set, list of rows, mapping of
            columns), with a column "prompt" (text or messages) or "messages" (if the assistant speaks last,
            that turn is left off); or a list of texts or of conversations.
        tokenizer: a name, a folder or an object; required.
        prompt_column: name of the column of prompts, if it is not "prompt".
        rewards: reward specs.
        max_new_tokens: token budget of a response.
        max_prompt_tokens: longer prompts are cut.
        limit: number of rows to use, from the first; None is all.
        validation: fraction of the distinct prompts that is split off as "validation" where the source has no
            such split: those with the smallest hash, see ``textenv.data.held_out``. 0 splits nothing off.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if data or tokenizer is missing, there is no column of prompts, or a prompt is empty
            (naming file and line).
        TypeError: if a prompt has the wrong type (naming file and line).

    Warns:
        UserWarning: if prompts repeat, with their number.

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> rows = [{"prompt": "ab", "answer": "c"}]
        >>> data = build_prompts(data=rows, tokenizer=letter_tokenizer("abc"))
        >>> data.prompts, data.columns
        (['ab'], {'answer': ['c']})
    """
    if data is None:
        raise ValueError(
            "task 'prompts' needs data: a file, folder, hub id, data set, list or mapping of columns"
        )
    if tokenizer is None:
        raise ValueError("task 'prompts' needs a tokenizer: a name, a folder or an object")
    if limit is not None:
        check_at_least("limit", limit, 1)
    check_number("validation", validation, 0, 1)
    how: dict[str, Any] = {
        "split": split,
        "prompt_column": prompt_column,
        "validation": validation,
        "limit": limit,
    }
    prompts, columns = read_prompts(_open(data, **how), limit=limit, open_turns=True)
    return TaskData(
        prompts=prompts,
        columns=columns,
        tokenizer=load_tokenizer(tokenizer),
        rewards=rewards,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        # Prompts of a list are named by their index.
        place_of=functools.partial(_place, data, how) if isinstance(data, str | os.PathLike) else None,
    )


def _lacks_validation(data: Any) -> bool:
    """Whether a source has no validation split; hub ids are assumed to have one."""
    names = splits_of(data)
    if names:
        return "train" in names and VALIDATION.isdisjoint(names)
    return not may_be_hub_id(data)


def _side(records: Records, held_out: bool, share: float, limit: int | None) -> Records:
    """The training or the validation side; all rows for training if there is only one prompt."""
    try:
        return split_off(records, held_out=held_out, share=share, limit=limit)
    except ValueError:
        if held_out:
            raise
        return records


def with_prompts(task_kwargs: Mapping[str, Any] | None, prompts: Any) -> dict[str, Any]:
    """Arguments of the task "prompts", with the prompts that were given separately.

    Raises:
        ValueError: if the arguments have data already.
    """
    if (task_kwargs or {}).get("data") is not None:
        raise ValueError("the prompts of the task 'prompts' were given twice, as prompts and as its data")
    return {**(task_kwargs or {}), "data": prompts}


def _open(
    data: Any, *, split: str | None, prompt_column: str | None, validation: float, limit: int | None
) -> Records:
    """The records of a split, see ``build_prompts``."""
    rename = None if prompt_column is None else {prompt_column: "prompt"}
    divided = validation > 0 and split in ("train", "validation") and _lacks_validation(data)
    whole = "train" if divided and splits_of(data) else None if divided else split
    records = load_columns(_rows_of_list(data), split=whole, columns=[], rename=rename)
    name = "messages" if "prompt" not in records.columns and "messages" in records.columns else "prompt"
    records = records.require(name)
    return _side(records, split == "validation", validation, limit) if divided else records


def _place(data: str | os.PathLike[str], how: Mapping[str, Any], number: int) -> str:
    """Where prompt ``number`` comes from; the source is read again, as places are needed in errors only."""
    return next(itertools.islice(_open(data, **how).source(), number, None))[0]


def load_tokenizer(
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase, *, what: str = "tokenizer"
) -> PreTrainedTokenizerBase:
    """A tokenizer by name or folder; an object passes through.

    Args:
        tokenizer: name, folder or object.
        what: its name in errors.

    Raises:
        FileNotFoundError: if it names a model that ``textenv.tasks.fetch`` fetches, and it was not fetched.
        ValueError: if it can't be loaded.
        TypeError: if it is neither a name nor a tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    from textenv.tasks.fetch_model import resolve_model

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if not isinstance(tokenizer, str | os.PathLike):
        raise TypeError(f"tokenizer must be a name, a folder or a tokenizer, got {type(tokenizer).__name__}")
    name = resolve_model(tokenizer)
    try:
        return load_pretrained(AutoTokenizer, name, what=what)
    except OSError as error:
        raise ValueError(str(error)) from error


def model_tokenizer(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder; if there is no such model, the error names the model.

    Args:
        model: the model's name or folder, or the tokenizer that it has as an object.

    Raises:
        FileNotFoundError, ValueError, TypeError: see ``load_tokenizer``.
    """
    try:
        return load_tokenizer(model, what="the model's tokenizer")
    except ValueError:
        from transformers import AutoConfig

        from textenv.tasks.fetch_model import resolve_model

        name = resolve_model(model)
        if os.path.exists(name):
            raise
        try:
            load_pretrained(AutoConfig, name, what="model")
        except OSError as error:
            raise ValueError(str(error)) from error
        raise


def _rows_of_list(data: Any) -> Any:
    """Texts and conversations as rows with a column; everything else as it is."""
    if isinstance(data, Sequence) and not isinstance(data, str | bytes) and len(data):
        if all(isinstance(item, str) for item in data):
            return _Rows("prompt", data)
        if all(isinstance(item, Sequence) and not isinstance(item, str | bytes) for item in data):
            return _Rows("messages", data)
    return data


class _Rows(Sequence[dict[str, Any]]):
    """The items of a list as rows with one column, made one at a time."""

    def __init__(self, column: str, items: Sequence[Any]) -> None:
        self._column, self._items = column, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return {self._column: self._items[index]}
