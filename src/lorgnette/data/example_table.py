"""Examples in a few flat buffers, which take about 100 bytes a row and its caption; each is built when it is asked for.

A row's own texts, such as its answer, are in one buffer. What rows have in common (the source, the roles, the question)
is there once for all of them, as a `_Shape`; images are in a table of their own. Forked processes share the
buffers, and send them to each other as they are.
"""

import marshal
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
from jaxtyping import Int32, Int64

from lorgnette.data.image_table import ImageTable
from lorgnette.types import Box, BoxSource, ControlToken, Example, Image, Role, Turn, TurnPart

MAX_SHARED = 4096
"""Shapes of a table up to which questions are in the shapes; those of rows after them are the rows' own texts."""
_NUMBERED_ID = "identity_"
"""The name of a row that has none of its own (`RowLocation.id`); only its number is kept."""
_IMAGE, _TEXT, _BOX = 0, 1, 2
"""A part that is the row's own; any other is the text itself."""
T = TypeVar("T")


class _Shape(NamedTuple):
    """What rows have in common.

    id_offset: the number in the row's id minus its row; None if the id is the row's own. turns: role, has_loss and
    parts of each; a part is a text or one of _IMAGE, _TEXT, _BOX.
    """

    source: str
    unread_keys: tuple[str, ...]
    is_trimmed: bool
    has_sheet_row: bool
    id_offset: int | None
    turns: tuple[tuple[Role, bool, tuple[str | int, ...]], ...]

    @property
    def has_own_question(self) -> bool:
        return any(part in (_TEXT, _BOX) for role, _, parts in self.turns if role != "assistant" for part in parts)

    @property
    def has_answer_boxes(self) -> bool:
        return any(part == _BOX for role, _, parts in self.turns if role == "assistant" for part in parts)

    def find_reference(self) -> "slice | None":
        """The row's own values that are its reference, as a slice from the end; None if that is not known from here."""
        if not self.turns or self.turns[-1][0] != "assistant":
            return slice(0, 0)
        counts = [sum(part in (_TEXT, _BOX) for part in parts) for _, _, parts in self.turns]
        for i in reversed(range(len(self.turns))):
            role, has_loss, parts = self.turns[i]
            if role == "assistant" and has_loss:
                is_own = all(part == _TEXT for part in parts)
                end = sum(counts[i + 1 :])
                return slice(-end - counts[i], -end or None) if is_own and parts else None
        return slice(0, 0)


class _Rows:
    """The buffers of a table. Row i has the values texts[ends[i] : ends[i + 1]], which marshal reads, and so on."""

    def __init__(self) -> None:
        self.shapes, self.shape_numbers = list[_Shape](), dict[_Shape, int]()
        self.sources, self.references = list[Path](), list[slice | None]()
        self.images = ImageTable()
        self.texts, self.ends = bytearray(), array("q", [0])
        self.row_shapes, self.row_images, self.image_ends = array("i"), array("i"), array("q", [0])

    def add(self, example: Example) -> None:
        """Add a row behind the others."""
        shares_texts = len(self.shapes) < MAX_SHARED
        own, offset = list[Any](), None
        own.append(int(example.row))
        if shares_texts and example.id.startswith(_NUMBERED_ID):
            offset = _read_offset(example.id, int(example.row))
        if offset is None:
            own.append(str.__str__(example.id))  # of NumPy's strings marshal would write the bytes
        if example.sheet_row:
            own.append(int(example.sheet_row))
        turns = []
        for turn in example.turns:
            is_shared, kinds = shares_texts and turn.role != "assistant", list[str | int]()
            for part in turn.parts:
                if isinstance(part, str):
                    kinds.append(part if is_shared else _TEXT)
                    if not is_shared:
                        own.append(str.__str__(part))
                elif isinstance(part, Image):
                    kinds.append(_IMAGE)
                    self.row_images.append(self.images.add(part))
                else:
                    kinds.append(_BOX)
                    own.append(_to_values(part))
            turns.append((turn.role, turn.has_loss, tuple(kinds)))
        shape = _Shape(
            str(example.source), example.unread_keys, example.is_trimmed, example.sheet_row != 0, offset, tuple(turns)
        )
        self.row_shapes.append(self._number_shape(shape, example.source))
        self.texts += marshal.dumps(tuple(own))
        self.ends.append(len(self.texts))
        self.image_ends.append(len(self.row_images))

    def extend(self, rows: "_Rows") -> list[int]:
        """Add all rows behind the others. Returns the numbers of their images."""
        shapes = [self._number_shape(shape, source) for shape, source in zip(rows.shapes, rows.sources, strict=True)]
        images = self.images.extend(rows.images)
        start, image_start = len(self.texts), len(self.row_images)
        self.texts += rows.texts
        self.ends.frombytes((view_int64(rows.ends)[1:] + start).tobytes())
        self.image_ends.frombytes((view_int64(rows.image_ends)[1:] + image_start).tobytes())
        self.row_shapes.frombytes(np.array(shapes, np.int32)[view_int32(rows.row_shapes)].tobytes())
        self.row_images.frombytes(np.array(images, np.int32)[view_int32(rows.row_images)].tobytes())
        return images

    def _number_shape(self, shape: _Shape, source: Path) -> int:
        number = self.shape_numbers.setdefault(shape, len(self.shapes))
        if number == len(self.shapes):
            self.shapes.append(shape)
            self.sources.append(source)
            self.references.append(shape.find_reference())
        return number

    def load(self, i: int) -> list[Any]:
        """The row's own values."""
        return list(marshal.loads(self.texts[self.ends[i] : self.ends[i + 1]]))  # noqa: S302  # our own

    def build(self, i: int, images: Sequence[Image] | None = None) -> Example:
        """The example of a row. images: `self.images`, if they are built already."""
        images = self.images if images is None else images
        number = self.row_shapes[i]
        shape, own = self.shapes[number], iter(self.load(i))
        row: int = next(own)
        id_: str = next(own) if shape.id_offset is None else f"{_NUMBERED_ID}{row + shape.id_offset}"
        sheet_row = next(own) if shape.has_sheet_row else 0
        next_image, turns = self.image_ends[i], []
        for role, has_loss, kinds in shape.turns:
            parts = list[TurnPart]()
            for kind in kinds:
                if kind == _IMAGE:
                    parts.append(images[self.row_images[next_image]])
                    next_image += 1
                elif kind == _TEXT:
                    parts.append(next(own))
                else:
                    parts.append(cast(str, kind) if kind != _BOX else _to_box(next(own)))
            turns.append(Turn(role, tuple(parts), has_loss))
        source = self.sources[number]
        return Example(id_, tuple(turns), source, row, shape.unread_keys, shape.is_trimmed, sheet_row)

    def read_reference(self, i: int) -> str:
        """`Example.reference` of a row."""
        place = self.references[self.row_shapes[i]]
        return self.build(i).reference if place is None else "".join(self.load(i)[place])

    def __getstate__(self) -> tuple[Any, ...]:
        buffers = self.texts, self.ends, self.row_shapes, self.row_images, self.image_ends
        return self.shapes, self.sources, self.images, *buffers

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__()  # type: ignore[misc]
        shapes, sources, self.images, *buffers = state
        for shape, source in zip(shapes, sources, strict=True):
            self._number_shape(shape, source)
        self.texts, self.ends, self.row_shapes, self.row_images, self.image_ends = buffers


class ExampleTable(Sequence[Example]):
    """Examples that are equal to those that were given, in every field. A slice is a table, too."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._rows, self._indices = _Rows(), cast("Int64[np.ndarray, ' N'] | None", None)
        for example in examples:
            self._rows.add(example)
        self._rows.images.drop_lookup()

    def extend(self, table: "ExampleTable") -> list[int]:
        """Add the rows of a table that is no part of another. Returns the numbers that its images have here."""
        if self._indices is not None or table._indices is not None:
            raise ValueError("a part of a table has no rows of its own")
        return self._rows.extend(table._rows)

    def add(self, example: Example) -> None:
        """Add a row behind the others."""
        self._rows.add(example)

    def drop_lookup(self) -> None:
        """Free what only `add` and `extend` need, which build it anew."""
        self._rows.images.drop_lookup()

    def select(self, indices: Sequence[int] | Int64[np.ndarray, " n"]) -> "ExampleTable":
        """Some of these rows, in the order of the indices; they share the buffers."""
        table, chosen = ExampleTable(), np.array(indices, np.int64)
        table._rows, table._indices = self._rows, chosen if self._indices is None else self._indices[chosen]
        return table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._rows.row_shapes) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> "ExampleTable": ...
    def __getitem__(self, index: int | slice) -> "Example | ExampleTable":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        return self._rows.build(self._get_row(index))

    def _get_row(self, index: int) -> int:
        row = range(len(self))[index]
        return row if self._indices is None else int(self._indices[row])

    def _iter_rows(self) -> Iterable[int]:
        return range(len(self)) if self._indices is None else self._indices.tolist()

    def __iter__(self) -> Iterator[Example]:
        return map(self._rows.build, self._iter_rows())

    def build_all(self) -> list[Example]:
        """All examples at once; those of one image share it."""
        images = self._rows.images.build_all()
        return [self._rows.build(row, images) for row in self._iter_rows()]

    def iter_references(self) -> Iterator[str]:
        """`Example.reference` of each row. Builds only rows whose answers have boxes."""
        return map(self._rows.read_reference, self._iter_rows())

    def iter_has_boxes(self) -> Iterator[bool]:
        """Whether `Example.reference_boxes` has one, for each row."""
        may_have = [shape.has_answer_boxes for shape in self._rows.shapes]
        for row in self._iter_rows():
            yield may_have[self._rows.row_shapes[row]] and bool(self._rows.build(row).reference_boxes)

    def group_by_question(self) -> Iterator[tuple[Example, int]]:
        """(the first of some rows that differ in their answers and images alone, the number of these rows).

        Rows whose questions are in no shape come one by one.
        """
        shapes = view_int32(self._rows.row_shapes).copy()
        shapes = shapes if self._indices is None else shapes[self._indices]
        distinct, firsts, counts = np.unique(shapes, return_index=True, return_counts=True)
        is_open = np.array([shape.has_own_question for shape in self._rows.shapes], bool)
        groups = [g for g in zip(distinct.tolist(), firsts.tolist(), counts.tolist(), strict=True) if not is_open[g[0]]]
        entries = [(first, count) for _, first, count in groups]
        entries += [(row, 1) for row in np.flatnonzero(is_open[shapes]).tolist()]
        for row, count in sorted(entries):
            yield self[row], count

    @property
    def images(self) -> ImageTable:
        """The distinct images of all rows, also of those that this part of them does not have."""
        return self._rows.images

    def list_image_numbers(self) -> tuple[Int32[np.ndarray, " M"], Int64[np.ndarray, " _"]]:
        """(numbers in `images` of the images of all rows, offsets): row i has numbers[offsets[i] : offsets[i + 1]]."""
        numbers, offsets = view_int32(self._rows.row_images), view_int64(self._rows.image_ends)
        if self._indices is None:
            return numbers.copy(), offsets.copy()
        return gather_runs(numbers, offsets, self._indices)


def iter_references(examples: Sequence[Example]) -> Iterable[str]:
    """The reference of each example; "" for one whose user has the last word."""
    return examples.iter_references() if isinstance(examples, ExampleTable) else (row.reference for row in examples)


def group_by_question(examples: Sequence[Example]) -> Iterable[tuple[Example, int]]:
    """As `ExampleTable.group_by_question`; the rows of a list come one by one."""
    return examples.group_by_question() if isinstance(examples, ExampleTable) else ((row, 1) for row in examples)


def view_int32(values: "array[int]") -> Int32[np.ndarray, " _"]:
    return np.frombuffer(values, np.int32)


def view_int64(values: "array[int]") -> Int64[np.ndarray, " _"]:
    return np.frombuffer(values, np.int64)


def gather_runs(
    values: Int32[np.ndarray, "_ ..."], offsets: Int64[np.ndarray, " _"], indices: Int64[np.ndarray, " n"]
) -> tuple[Int32[np.ndarray, "_ ..."], Int64[np.ndarray, " _"]]:
    """(values[offsets[i] : offsets[i + 1]] for each index i, one after the other; their offsets)"""
    starts = offsets[indices]
    counts = offsets[indices + 1] - starts
    ends = np.concatenate([[0], counts.cumsum(dtype=np.int64)])
    return values[np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1])], ends


def _to_values(box: Box) -> tuple[Any, ...]:
    """A box as marshal writes it. Raises TypeError for other numbers than Python's, which it would not keep."""
    numbers = (*box.corners, box.image, *box.source.numbers)
    if any(type(number) not in (int, float) for number in numbers):
        raise TypeError(f"a box has other numbers than int and float: {numbers}")
    written = tuple(piece if isinstance(piece, str) else (piece.name,) for piece in box.written)
    return box.corners, box.label, box.image, box.unit, written, tuple(box.source)


def _to_box(values: tuple[Any, ...]) -> Box:
    corners, label, image, unit, written, source = values
    pieces = tuple(piece if isinstance(piece, str) else ControlToken(*piece) for piece in written)
    return Box(corners, label, image, unit, pieces, BoxSource(*source))


def _read_offset(id_: str, row: int) -> int | None:
    """What the number in a row's id is more than its row; None if the id does not follow from it."""
    digits = id_[len(_NUMBERED_ID) :]
    is_number = 0 < len(digits) < 19 and digits.isascii() and digits.isdecimal()
    return int(digits) - row if is_number and str(int(digits)) == digits else None
