"""The encoded rows of a data set in a few flat arrays, which take 68 bytes a row and 4 a text token of its own.

What follows from these is computed when a row is asked for: the image tokens, which all have one id; the labels, which
are the ids of a few spans; the positions. The tokens before the first answer are there once for all rows that begin so.

    input_ids   s s s I I I I u u a a e      beginning   s s s u u      text    a a e      image_starts   3
    labels      - - - - - - - - - a a e                                 spans   (9, 12)

Forked processes share the arrays. Of a list they would copy the memory, page after page: to read an element is to count
a reference to it, which writes. Needs no torch.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int32, Int64

from lorgnette.data.example_table import ExampleTable, gather_runs, view_int32, view_int64
from lorgnette.data.image_table import ImageTable
from lorgnette.processing.grid_table import GridKey, GridTable
from lorgnette.types import IGNORE_INDEX, Encoded, Example, ImageGrid

MAX_BEGINNINGS = 1 << 16
"""Beginnings of rows that are kept apart; rows after them have all of their text to themselves."""
_DIGEST_ROWS = 1 << 16
MAX_BUILT = 1024
"""Rows that stay built, 3 kB each."""
PositionFunction = Callable[[int, Sequence[int], Sequence[ImageGrid]], Int32[np.ndarray, "3 T"]]
"""(length, image_starts, grids) → positions; `compute_position_ids` of a model family."""


class TextRow(NamedTuple):
    """A row without what follows from it.

    text: the ids of its tokens that are no image tokens. spans: begin and end of each span of labels, one after the
    other, as indices of all tokens. image_starts, grids: as in `Encoded`. beginning: the first ids of `text`, which
    other rows have, too. num_skipped: answers that the data wants learned, but that do not begin as a prediction does.
    """

    example: Example
    text: Sequence[int] | Int32[np.ndarray, " _"]
    spans: Sequence[int]
    image_starts: Sequence[int]
    grids: Sequence[ImageGrid]
    beginning: tuple[int, ...] = ()
    num_skipped: int = 0

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

    def get_text_id(self, place: int) -> int:
        """The id of a token that is no image token, by its place among all tokens."""
        images = zip(self.image_starts, self.grids, strict=True)
        return int(self.text[place - sum([grid.num_tokens for start, grid in images if start < place])])


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
        images, offsets = gather_runs(self.images, self.image_offsets, indices)
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
    """All rows. Row i has beginnings[row_beginnings[i]] and text[text_offsets[i] : text_offsets[i + 1]], and so on;
    images are numbers in `grids`."""

    conversations: ExampleTable
    beginnings: Sequence[Int32[np.ndarray, " _"]]
    row_beginnings: Int32[np.ndarray, " N"]
    text: Int32[np.ndarray, " _"]
    text_offsets: Int64[np.ndarray, " _"]
    spans: Int32[np.ndarray, "_ 2"]
    span_offsets: Int64[np.ndarray, " _"]
    image_starts: Int32[np.ndarray, " M"]
    images: Int32[np.ndarray, " M"]
    image_offsets: Int64[np.ndarray, " _"]
    grids: GridTable
    image_token_id: int
    compute_position_ids: PositionFunction

    def build(self, i: int) -> Encoded:
        images = slice(*self.image_offsets[i : i + 2].tolist())
        own_text = self.text[slice(*self.text_offsets[i : i + 2].tolist())]
        text = np.concatenate([self.beginnings[self.row_beginnings[i]], own_text])
        spans = self.spans[slice(*self.span_offsets[i : i + 2].tolist())].ravel().tolist()
        grids = [self.grids[number] for number in self.images[images].tolist()]
        row = TextRow(self.conversations[i], text, spans, self.image_starts[images].tolist(), grids)
        return row.expand(self.image_token_id, self.compute_position_ids)

    def measure(self) -> RowSizes:
        num_tokens = self.grids.count_tokens()[self.images]
        used_lengths, shared_lengths = np.zeros((2, len(self.conversations)), np.int32)
        has_labels, has_images = np.diff(self.span_offsets) > 0, np.diff(self.image_offsets) > 0
        used_lengths[has_labels] = self.spans[self.span_offsets[1:][has_labels] - 1, 1] - 1
        first_images = self.image_offsets[:-1][has_images]
        shared_lengths[has_images] = (self.image_starts + num_tokens)[first_images]
        num_first = _as_int32(map(len, self.beginnings))[self.row_beginnings]
        num_own = np.diff(self.text_offsets).astype(np.int32)
        lengths = num_first + num_own + _sum_runs(num_tokens, self.image_offsets)
        num_labels = _sum_runs(self.spans[:, 1] - self.spans[:, 0], self.span_offsets)
        return RowSizes(lengths, used_lengths, num_labels, shared_lengths, self.images, self.image_offsets, self.grids)


class RowBuffers:
    """The arrays of a table while rows are added; forked processes send them to each other.

    Row i has text[text_ends[i] : text_ends[i + 1]] behind beginnings[row_beginnings[i]], and so on.
    """

    def __init__(self, images: ImageTable) -> None:
        """images: those that the rows have; more may be added to it."""
        self.beginnings, self.row_beginnings = dict[tuple[int, ...], int](), array("i")
        self.grids = GridTable(images)
        self.text, self.spans, self.image_starts, self.images = array("i"), array("i"), array("i"), array("i")
        self.text_ends, self.span_ends, self.image_ends = array("q", [0]), array("q", [0]), array("q", [0])

    def add(self, row: TextRow, images: Iterable[int]) -> None:
        """Add a row behind the others. images: the numbers of its images."""
        beginning = row.beginning if len(self.beginnings) < MAX_BEGINNINGS else ()
        self.row_beginnings.append(self.beginnings.setdefault(beginning, len(self.beginnings)))
        self.text.extend(row.text[len(beginning) :])
        self.spans.extend(row.spans)
        self.image_starts.extend(row.image_starts)
        grids = zip(images, row.grids, strict=True)
        self.images.extend([self.grids.add(image, grid.t, grid.h, grid.w, grid.merge) for image, grid in grids])
        self.text_ends.append(len(self.text))
        self.span_ends.append(len(self.spans) // 2)
        self.image_ends.append(len(self.images))

    def extend(self, rows: "RowBuffers") -> None:
        """Add all rows, which have the same table of images, behind the others."""
        beginnings = _as_int32(self.beginnings.setdefault(ids, len(self.beginnings)) for ids in rows.beginnings)
        grids = _as_int32(self.grids.add(*values) for values in rows.grids.iter_values())
        self.row_beginnings.frombytes(beginnings[view_int32(rows.row_beginnings)].tobytes())
        self.images.frombytes(grids[view_int32(rows.images)].tobytes())
        for own, other, total in (
            (self.text_ends, rows.text_ends, len(self.text)),
            (self.span_ends, rows.span_ends, len(self.spans) // 2),
            (self.image_ends, rows.image_ends, self.image_ends[-1]),
        ):
            own.frombytes((view_int64(other)[1:] + total).tobytes())
        self.text += rows.text
        self.spans += rows.spans
        self.image_starts += rows.image_starts


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
        conversations, images = ExampleTable(), ImageTable()
        buffers = RowBuffers(images)
        for row in rows:
            conversations.add(row.example)
            buffers.add(row, [images.add(grid.image) for grid in row.grids])
        return cls.from_buffers(conversations, buffers, image_token_id, compute_position_ids)

    @classmethod
    def from_buffers(
        cls,
        conversations: ExampleTable,
        buffers: "RowBuffers",
        image_token_id: int,
        compute_position_ids: PositionFunction,
    ) -> "EncodedRows":
        """conversations: the examples of the rows. buffers: cannot grow any more: the rows are views of them."""
        buffers.grids.drop_lookup()
        table = _Table(
            conversations, [np.array(ids, np.int32) for ids in buffers.beginnings],
            view_int32(buffers.row_beginnings), view_int32(buffers.text), view_int64(buffers.text_ends),
            view_int32(buffers.spans).reshape(-1, 2), view_int64(buffers.span_ends), view_int32(buffers.image_starts),
            view_int32(buffers.images), view_int64(buffers.image_ends), buffers.grids, image_token_id,
            compute_position_ids,
        )  # fmt: skip
        return cls(table, np.arange(len(conversations)), table.measure())

    @property
    def conversations(self) -> ExampleTable:
        """The examples before they were encoded, with their boxes as the model writes them."""
        return self._table.conversations.select(self._indices)

    def list_grid_keys(self) -> list[GridKey]:
        """Of `sizes.distinct_grids`."""
        return [self._table.grids.get_key(number) for number in dict.fromkeys(self.sizes.images.tolist())]

    def update_digest(self, digest: "hashlib._Hash", image_order: Mapping[GridKey, int]) -> None:
        """Add to a digest all that tokens, labels and positions of these rows follow from. image_order: a number for
        each of their grids. Equal rows have equal digests, whatever rows were encoded with them."""
        table = self._table
        beginnings, firsts = _number_by_first_use(table.row_beginnings[self._indices])
        texts = [table.beginnings[number].tolist() for number in firsts.tolist()]
        images = [(image_order[key], *key[1:]) for key in self.list_grid_keys()]
        digest.update(f"{len(self)} {table.image_token_id} {texts} {images}".encode())
        order = _as_int32(image_order.get(table.grids.get_key(number), -1) for number in range(len(table.grids)))
        for start in range(0, len(self), _DIGEST_ROWS):
            rows = self._indices[start : start + _DIGEST_ROWS]
            digest.update(beginnings[start : start + _DIGEST_ROWS].tobytes())
            images_of_rows, ends = gather_runs(table.images, table.image_offsets, rows)
            for values, offsets in (
                (order[images_of_rows], ends),
                gather_runs(table.image_starts, table.image_offsets, rows),
                gather_runs(table.spans, table.span_offsets, rows),
                gather_runs(table.text, table.text_offsets, rows),
            ):
                digest.update(offsets.tobytes())
                digest.update(values.tobytes())

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


def _number_by_first_use(values: Int32[np.ndarray, " n"]) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " k"]]:
    """(each value's number in the order of first use, the distinct values in that order)"""
    distinct, firsts, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.arange(len(order))
    return numbers[inverse], distinct[order]


def _as_int32(values: Iterable[int]) -> Int32[np.ndarray, " _"]:
    return np.fromiter(values, np.int32)


def _count_offsets(counts: Int32[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " _"]:
    return np.concatenate([[0], counts.cumsum(dtype=np.int64)])


def _sum_runs(values: Int32[np.ndarray, " m"], offsets: Int64[np.ndarray, " _"]) -> Int32[np.ndarray, " n"]:
    """The sum of values[offsets[i] : offsets[i + 1]] for each i."""
    sums: Int32[np.ndarray, " n"] = np.diff(_count_offsets(values)[offsets]).astype(np.int32)
    return sums
