"""What every reader of a data set gives: rows one by one, each with a token to go on behind it.

Knows nothing about formats.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Token = list[int | str]
"""Where a reader goes on; the reader knows what it means. It can stand in a JSON file."""


@dataclass(frozen=True, slots=True)
class Row:
    """place: for a person. picture: its bytes, or the address to get it from. name: what the source calls it.
    number: its COCO id. fault: why the row cannot be used, "" where it can. hub: whose token its address wants."""

    place: str
    captions: tuple[str, ...]
    picture: bytes | str
    name: str = ""
    number: int | None = None
    fault: str = ""
    hub: str = ""


class Rows(Protocol):
    """A split of a data set."""

    def read(self, after: Token | None) -> Iterator[tuple[Row, Token]]:
        """The rows chosen, in their order, beginning behind `after`; each with its own token."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows: the first `first`, or a fair sample of `sample`; both None: all. Which columns, where asked for."""

    first: int | None = None
    sample: int | None = None
    seed: int = 0
    image: str | None = None
    caption: str | None = None

    @property
    def count(self) -> int | None:
        return self.first if self.sample is None else self.sample

    @property
    def key(self) -> str:
        """The same for choices of which one is the beginning of the other."""
        return "first" if self.sample is None else f"sample-{self.sample}-seed-{self.seed}"

    def numbers(self, total: int) -> list[int] | range:
        """The rows' numbers, ascending: every row of `total` is equally likely to be in a sample."""
        if self.sample is None:
            return range(total if self.first is None else min(self.first, total))
        return sorted(random.Random(self.seed).sample(range(total), min(self.sample, total)))


def captions(value: Any, *, joined: str | None = None) -> tuple[str, ...]:
    """The texts in a cell: a text, a list of them, or of objects that hold one as `raw`, `caption` or `text`.
    joined: what stands between several captions of one text."""
    if isinstance(value, str):
        parts: Sequence[str] = value.split(joined) if joined else [value]
        return tuple(part.strip() for part in parts if part.strip())
    if isinstance(value, Mapping):
        return next((captions(value[key]) for key in ("raw", "caption", "text") if value.get(key)), ())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(text for each in value for text in captions(each))
    return ()
