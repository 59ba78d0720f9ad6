"""Short texts with many people's sentiment ratings each (Hutto and Gilbert 2014), and their split by hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from textenv.tasks.fetch import is_fetched, snippets_folder
from textenv.utils.checks import check_choice

SOURCES = {
    "movie": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "tweets": "tweets",
    "news": "nytEditorialSnippets",
}
SPLITS = ("language-model", "validation", "reward-model", "judge")
_LIMITS = {"language-model": 55, "validation": 60, "reward-model": 80, "judge": 100}
"""Per cent of the texts up to and including each split."""


def split_of(text: str) -> str:
    """The split of a text, by its md5: language model 55 %, validation 5 %, reward model 20 %, judge 20 %.

    Equal texts are in the same split, so a judge never learns from texts that a reward model saw.

    >>> split_of("Effective but too tepid biopic")
    'reward-model'
    """
    place = int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 100
    return next(split for split, limit in _LIMITS.items() if place < limit)


@dataclass(frozen=True, kw_only=True)
class RatedSnippets:
    """n texts and their sentiment ratings.

    Raises:
        ValueError: if the counts differ or a text has no rating.
    """

    name: str
    """Name of the source."""
    texts: tuple[str, ...]
    """n texts."""
    ratings: tuple[tuple[int, ...], ...]
    """n tuples of ratings, each from -4 (extremely negative) to 4 (extremely positive)."""

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.ratings):
            raise ValueError(
                f"ratings must have {len(self.texts)} entries like texts, got {len(self.ratings)}"
            )
        for text, given in zip(self.texts, self.ratings, strict=True):
            if not given:
                raise ValueError(f"every text needs a rating, got none for {text!r}")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def means(self) -> tuple[float, ...]:
        """(n,) mean rating of each text."""
        return tuple(sum(given) / len(given) for given in self.ratings)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """(n,) split of each text."""
        return tuple(split_of(text) for text in self.texts)

    def select(self, *splits: str) -> RatedSnippets:
        """The texts of some splits, in their order.

        Raises:
            ValueError: if a split is unknown.
        """
        for split in splits:
            check_choice("split", split, SPLITS)
        rows = [i for i, split in enumerate(self.splits) if split in splits]
        return RatedSnippets(
            name=self.name,
            texts=tuple(self.texts[i] for i in rows),
            ratings=tuple(self.ratings[i] for i in rows),
        )


def load_snippets(name: str = "movie", *, folder: str | Path | None = None) -> RatedSnippets:
    """Load one source of rated texts.

    Args:
        name: "movie" (10,605 sentences of film reviews), "product" (3,708), "tweets" (4,200), "news" (5,190).
        folder: with the files of the data set; by default where ``python -m textenv.tasks.fetch`` puts them.

    Raises:
        ValueError: if the name is unknown, or a line is malformed (naming file and line).
        FileNotFoundError: if the files are not there.
    """
    check_choice("name", name, SOURCES)
    if folder is None:
        if not is_fetched():
            raise FileNotFoundError(
                f"the rated texts are not in {snippets_folder()}; fetch them once with `make data` "
                "or `python -m textenv.tasks.fetch` (2.4 MB)"
            )
        return _load_fetched(name, snippets_folder())
    return parse_snippets(name, Path(folder))


@lru_cache(maxsize=len(SOURCES))
def _load_fetched(name: str, folder: Path) -> RatedSnippets:
    return parse_snippets(name, folder)


def parse_snippets(name: str, folder: Path) -> RatedSnippets:
    """Read ``*_GroundTruth.txt`` (id, mean, text) and ``*_anonDataRatings.txt`` (id, mean, sd, ratings).

    The mean is taken from the ratings. Texts stay as they are, character by character.
    """
    stem = SOURCES[name]
    ratings_path = folder / f"{stem}_anonDataRatings.txt"
    ratings: dict[str, tuple[int, ...]] = {}
    for where, (identity, _, _, written) in _lines(ratings_path, 4):
        ratings[identity] = _ratings(written, where)
    texts, kept = [], []
    for where, (identity, _, text) in _lines(folder / f"{stem}_GroundTruth.txt", 3):
        if identity not in ratings:
            raise ValueError(f"{where}: {ratings_path.name} has no ratings of id {identity!r}")
        texts.append(text.strip())
        kept.append(ratings[identity])
    return RatedSnippets(name=name, texts=tuple(texts), ratings=tuple(kept))


def _lines(path: Path, fields: int) -> list[tuple[str, list[str]]]:
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = line.rstrip("\r\n").split("\t", fields - 1)
            if len(row) != fields:
                raise ValueError(
                    f"{path}:{number} must have {fields} fields separated by tabs, got {len(row)}"
                )
            rows.append((f"{path}:{number}", row))
    return rows


def _ratings(written: str, where: str) -> tuple[int, ...]:
    try:
        values = json.loads(written)
    except json.JSONDecodeError:
        values = None
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(v, int) and -4 <= v <= 4 for v in values)
    ):
        raise ValueError(f"{where} must end in a list of whole ratings from -4 to 4, got {written[:60]!r}")
    return tuple(values)
