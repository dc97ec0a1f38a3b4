"""The encoded rows of a data set in a few flat arrays, which take 72 bytes a row and 4 a text token.

What follows from these is computed when a row is asked for: the image tokens, which all have one id; the labels, which
are the ids of a few spans; the positions.

    input_ids   s s s I I I I u u a a e      text    s s s u u a a e      image_starts   3
    labels      - - - - - - - - - a a e      spans   (9, 12)

Forked processes share the arrays. Of a list they would copy the memory, page after page: to read an element is to count
a reference to it, which writes. Needs no torch.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int32, Int64

from lorgnette.types import IGNORE_INDEX, Encoded, Example, ImageGrid

MAX_BUILT = 1024
"""Rows that stay built, 3 kB each."""
PositionFunction = Callable[[int, Sequence[int], Sequence[ImageGrid]], Int32[np.ndarray, "3 T"]]
"""(length, image_starts, grids) → positions; `compute_position_ids` of a model family."""


class TextRow(NamedTuple):
    """A row without what follows from it.

    text: the ids of its tokens that are no image tokens. spans: begin and end of each span of labels, one after the
    other, as indices of all tokens. image_starts, grids: as in `Encoded`.
    """

    example: Example
    text: Sequence[int] | Int32[np.ndarray, " _"]
    spans: Sequence[int]
    image_starts: Sequence[int]
    grids: Sequence[ImageGrid]

    def expand(self, image_token_id: int, compute_position_ids: PositionFunction) -> Encoded:
        """The whole row. image_token_id: of every image token."""
        length = len(self.text) + sum([grid.num_tokens for grid in self.grids])
        input_ids = np.full(length, image_token_id, np.int32)
        end = num_text = 0
        for grid, start in zip(self.grids, self.image_starts, strict=True):
            input_ids[end:start] = self.text[num_text : num_text + start - end]
            num_text += start - end
            end = start + grid.num_tokens
        input_ids[end:] = self.text[num_text:]
        labels = np.full(length, IGNORE_INDEX, np.int32)
        for first, last in zip(self.spans[::2], self.spans[1::2], strict=True):
            labels[first:last] = input_ids[first:last]
        position_ids = compute_position_ids(length, self.image_starts, self.grids)
        return Encoded(self.example, input_ids, labels, position_ids, tuple(self.grids), tuple(self.image_starts))


def add_span(spans: list[int], first: int, last: int) -> None:
    """Add a span of labels behind the others; one that begins where the last ends becomes part of it."""
    if spans and spans[-1] == first:
        spans[-1] = last
    else:
        spans += first, last


@dataclass(frozen=True, eq=False)
class RowSizes:
    """What is known of N rows without building them.

    lengths: tokens of each. used_lengths: those up to the one that predicts the last label. num_labels: of each.
    shared_lengths: tokens up to the end of the first image, which rows about it usually share; 0 without an image.
    images: of all rows, as numbers in `grids`; row i has images[image_offsets[i] : image_offsets[i + 1]].
    """

    lengths: Int32[np.ndarray, " N"]
    used_lengths: Int32[np.ndarray, " N"]
    num_labels: Int32[np.ndarray, " N"]
    shared_lengths: Int32[np.ndarray, " N"]
    images: Int32[np.ndarray, " M"]
    image_offsets: Int64[np.ndarray, " _"]
    grids: Sequence[ImageGrid]

    @classmethod
    def from_examples(cls, examples: Sequence[Encoded]) -> "RowSizes":
        """Those of `EncodedRows` are there already; others are counted."""
        if isinstance(examples, EncodedRows):
            return examples.sizes
        numbers: dict[ImageGrid, int] = {}
        images = [numbers.setdefault(grid, len(numbers)) for encoded in examples for grid in encoded.grids]
        labels = [np.flatnonzero(encoded.labels != IGNORE_INDEX) for encoded in examples]
        firsts = [list(zip(encoded.image_starts, encoded.grids, strict=True))[:1] for encoded in examples]
        return cls(
            _as_int32(len(encoded.input_ids) for encoded in examples),
            _as_int32(at[-1] if len(at) else 0 for at in labels),
            _as_int32(map(len, labels)),
            _as_int32(sum(start + grid.num_tokens for start, grid in first) for first in firsts),
            _as_int32(images),
            _count_offsets(_as_int32(len(encoded.grids) for encoded in examples)),
            list(numbers),
        )

    def select(self, indices: Int64[np.ndarray, " n"]) -> "RowSizes":
        """Those of some rows, in the order of the indices."""
        starts = self.image_offsets[indices]
        counts = self.image_offsets[indices + 1] - starts
        offsets = _count_offsets(counts)
        images = self.images[np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])]
        return RowSizes(
            self.lengths[indices], self.used_lengths[indices], self.num_labels[indices], self.shared_lengths[indices],
            images, offsets, self.grids,
        )  # fmt: skip

    @property
    def first_images(self) -> Int32[np.ndarray, " N"]:
        """The number of each row's first image; -1 without one."""
        starts, ends = self.image_offsets[:-1], self.image_offsets[1:]
        first = np.full(len(self.lengths), -1, np.int32)
        first[starts < ends] = self.images[starts[starts < ends]]
        return first

    def iter_grids(self) -> Iterator[list[ImageGrid]]:
        """The images of each row."""
        numbers = self.images.tolist()
        for start, end in pairwise(self.image_offsets.tolist()):
            yield [self.grids[number] for number in numbers[start:end]]

    @property
    def distinct_grids(self) -> list[ImageGrid]:
        """The distinct images of these rows, in the order of their first use."""
        return [self.grids[number] for number in dict.fromkeys(self.images.tolist())]


@dataclass(frozen=True, eq=False)
class _Table:
    """All rows. Row i has text[text_offsets[i] : text_offsets[i + 1]], and so on; images are numbers in `grids`."""

    conversations: Sequence[Example]
    text: Int32[np.ndarray, " _"]
    text_offsets: Int64[np.ndarray, " _"]
    spans: Int32[np.ndarray, "_ 2"]
    span_offsets: Int64[np.ndarray, " _"]
    image_starts: Int32[np.ndarray, " M"]
    images: Int32[np.ndarray, " M"]
    image_offsets: Int64[np.ndarray, " _"]
    grids: Sequence[ImageGrid]
    image_token_id: int
    compute_position_ids: PositionFunction

    def build(self, i: int) -> Encoded:
        images = slice(*self.image_offsets[i : i + 2].tolist())
        text = self.text[slice(*self.text_offsets[i : i + 2].tolist())]
        spans = self.spans[slice(*self.span_offsets[i : i + 2].tolist())].ravel().tolist()
        grids = [self.grids[number] for number in self.images[images].tolist()]
        row = TextRow(self.conversations[i], text, spans, self.image_starts[images].tolist(), grids)
        return row.expand(self.image_token_id, self.compute_position_ids)

    def measure(self) -> RowSizes:
        num_tokens = _as_int32(grid.num_tokens for grid in self.grids)[self.images]
        used_lengths, shared_lengths = np.zeros((2, len(self.conversations)), np.int32)
        has_labels, has_images = np.diff(self.span_offsets) > 0, np.diff(self.image_offsets) > 0
        used_lengths[has_labels] = self.spans[self.span_offsets[1:][has_labels] - 1, 1] - 1
        first_images = self.image_offsets[:-1][has_images]
        shared_lengths[has_images] = (self.image_starts + num_tokens)[first_images]
        lengths = np.diff(self.text_offsets).astype(np.int32) + _sum_runs(num_tokens, self.image_offsets)
        num_labels = _sum_runs(self.spans[:, 1] - self.spans[:, 0], self.span_offsets)
        return RowSizes(lengths, used_lengths, num_labels, shared_lengths, self.images, self.image_offsets, self.grids)


class EncodedRows(Sequence[Encoded]):
    """Rows that are built when they are asked for, equal to those that were given. A slice is rows too.

    The last MAX_BUILT are kept: `plan` and a training of few rows ask for the same ones again and again.
    """

    def __init__(
        self,
        table: _Table,
        indices: Int64[np.ndarray, " N"],
        sizes: RowSizes,
        build: Callable[[int], Encoded] | None = None,
    ) -> None:
        """indices: of the rows in the table; sizes: of these rows. build: `table.build` that keeps rows."""
        self._table, self._indices, self.sizes = table, indices, sizes
        self._build = build or lru_cache(MAX_BUILT)(table.build)

    @classmethod
    def from_rows(
        cls, rows: Iterable[TextRow], image_token_id: int, compute_position_ids: PositionFunction
    ) -> "EncodedRows":
        """image_token_id, compute_position_ids: as in `TextRow.expand`."""
        conversations = list[Example]()
        numbers: dict[ImageGrid, int] = {}
        text, spans, image_starts, images = array("i"), array("i"), array("i"), array("i")
        ends = array("q", [0, 0, 0])
        for row in rows:
            conversations.append(row.example)
            text.extend(row.text)
            spans.extend(row.spans)
            image_starts.extend(row.image_starts)
            images.extend([numbers.setdefault(grid, len(numbers)) for grid in row.grids])
            ends.extend((len(text), len(spans) // 2, len(images)))
        text_offsets, span_offsets, image_offsets = np.array(ends, np.int64).reshape(-1, 3).T.copy()
        table = _Table(
            conversations, np.array(text, np.int32), text_offsets, np.array(spans, np.int32).reshape(-1, 2),
            span_offsets, np.array(image_starts, np.int32), np.array(images, np.int32), image_offsets, list(numbers),
            image_token_id, compute_position_ids,
        )  # fmt: skip
        return cls(table, np.arange(len(conversations)), table.measure())

    @property
    def conversations(self) -> list[Example]:
        """The examples before they were encoded, with their boxes as the model writes them."""
        return [self._table.conversations[i] for i in self._indices.tolist()]

    def select(self, indices: Sequence[int]) -> "EncodedRows":
        """Some of these rows, in the order of the indices."""
        chosen = np.array(indices, np.int64)
        return EncodedRows(self._table, self._indices[chosen], self.sizes.select(chosen), self._build)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "EncodedRows": ...
    def __getitem__(self, index: int | slice) -> "Encoded | EncodedRows":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self._build(int(self._indices[index]))


def select_rows(examples: Sequence[Encoded], indices: Sequence[int]) -> Sequence[Encoded]:
    """Some of the examples, in the order of the indices; those of `EncodedRows` are not built yet."""
    return examples.select(indices) if isinstance(examples, EncodedRows) else [examples[i] for i in indices]


def _as_int32(values: Iterable[int]) -> Int32[np.ndarray, " _"]:
    return np.fromiter(values, np.int32)


def _count_offsets(counts: Int32[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " _"]:
    return np.concatenate([[0], counts.cumsum(dtype=np.int64)])


def _sum_runs(values: Int32[np.ndarray, " m"], offsets: Int64[np.ndarray, " _"]) -> Int32[np.ndarray, " n"]:
    """The sum of values[offsets[i] : offsets[i + 1]] for each i."""
    sums: Int32[np.ndarray, " n"] = np.diff(_count_offsets(values)[offsets]).astype(np.int32)
    return sums
