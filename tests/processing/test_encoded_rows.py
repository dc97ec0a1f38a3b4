"""Rows in flat arrays equal those that were encoded, and take little memory."""

import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.models.qwen2_vl.positions import compute_position_ids
from lorgnette.processing.encoded_rows import EncodedRows, RowSizes, TextRow, add_span, select_rows
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid

IMAGE_TOKEN = 7
GRIDS = [ImageGrid(Image(Path(f"{i}.png")), 1, h, w, 2) for i, (h, w) in enumerate([(4, 6), (2, 2), (6, 4)])]
RUN = st.one_of(st.sampled_from(GRIDS), st.tuples(st.integers(0, 4), st.booleans()))
ROWS = st.lists(st.lists(RUN, max_size=6), max_size=8)


Runs = Sequence[ImageGrid | tuple[int, bool]]


def build_row(number: int, runs: Runs) -> TextRow:
    """A run is an image, or a text: its tokens, and whether they are labels. Some texts have the image token's id."""
    text, spans, starts, grids, length = list[int](), list[int](), list[int](), list[ImageGrid](), 0
    for run in runs:
        if isinstance(run, ImageGrid):
            starts.append(length)
            grids.append(run)
            length += run.num_tokens
        else:
            count, is_learned = run
            text += [IMAGE_TOKEN + (length + i) % 5 for i in range(count)]
            if count and is_learned:
                add_span(spans, length, length + count)
            length += count
    return TextRow(Example(f"{number}", (), Path("x"), number), text, spans, starts, grids)


def build_encoded(number: int, runs: Runs) -> Encoded:
    """The same, token by token."""
    tokens, labels, starts, grids = list[int](), list[int](), list[int](), list[ImageGrid]()
    for run in runs:
        if isinstance(run, ImageGrid):
            starts.append(len(tokens))
            grids.append(run)
            new, is_learned = [IMAGE_TOKEN] * run.num_tokens, False
        else:
            count, is_learned = run
            new = [IMAGE_TOKEN + (len(tokens) + i) % 5 for i in range(count)]
        tokens += new
        labels += new if is_learned else [IGNORE_INDEX] * len(new)
    position_ids = compute_position_ids(len(tokens), starts, grids)
    arrays = np.array(tokens, np.int32), np.array(labels, np.int32), position_ids
    return Encoded(Example(f"{number}", (), Path("x"), number), *arrays, tuple(grids), tuple(starts))


def pack_rows(rows: Iterable[TextRow]) -> EncodedRows:
    return EncodedRows.from_rows(rows, IMAGE_TOKEN, compute_position_ids)


def assert_equal(row: Encoded, expected: Encoded) -> None:
    for name in ("input_ids", "labels", "position_ids"):
        array, other = getattr(row, name), getattr(expected, name)
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)
    assert (row.grids, row.image_starts, row.num_labels) == (expected.grids, expected.image_starts, expected.num_labels)
    assert row.example == expected.example


def assert_same_sizes(sizes: RowSizes, expected: RowSizes) -> None:
    for name in ("lengths", "used_lengths", "num_labels", "shared_lengths", "image_offsets", "images", "first_images"):
        array, other = getattr(sizes, name), getattr(expected, name)
        if name in ("images", "first_images"):  # numbers of the same images
            array, other = ([None if n < 0 else s.grids[n] for n in a] for s, a in ((sizes, array), (expected, other)))
        assert list(array) == list(other), name
    assert sizes.distinct_grids == expected.distinct_grids


@given(ROWS, st.data())
def test_rows_equal_those_that_were_encoded(
    rows: list[list[ImageGrid | tuple[int, bool]]], data: st.DataObject
) -> None:
    examples = [build_encoded(i, runs) for i, runs in enumerate(rows)]
    packed = pack_rows(build_row(i, runs) for i, runs in enumerate(rows))
    assert len(packed) == len(examples)
    for row, expected in zip(packed, examples, strict=True):
        assert_equal(row, expected)
    assert packed.conversations == [encoded.example for encoded in examples]
    assert_same_sizes(packed.sizes, RowSizes.from_examples(examples))

    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    chosen = select_rows(packed, indices)
    assert isinstance(chosen, EncodedRows)
    for row, expected in zip(chosen, select_rows(examples, indices), strict=True):
        assert_equal(row, expected)
    assert_same_sizes(chosen.sizes, RowSizes.from_examples([examples[i] for i in indices]))
    part = data.draw(st.slices(len(indices)))
    assert chosen[part].conversations == chosen.conversations[part]


def test_an_index_behind_the_end_is_an_error() -> None:
    packed = pack_rows([build_row(0, [(3, True)]), build_row(1, [])])
    assert packed[-1].example.id == "1"
    for index in (2, -3):
        with pytest.raises(IndexError):
            packed[index]


def test_a_row_takes_300_bytes_and_its_labels() -> None:
    """Captions of images with 280 x 280 pixels: 30 tokens of text, 12 of them labels, and 100 of the image."""
    grids = [ImageGrid(Image(Path(f"{i}.jpg")), 1, 20, 20, 2) for i in range(40)]
    runs: list[Runs] = [[(15, False), grid, (3, False), (12, True)] for grid in grids for _ in range(5)]
    rows = [row for row in map(build_row, range(200), runs) for _ in range(50)]
    tracemalloc.start()
    packed = pack_rows(rows)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(packed) == 10_000
    assert taken < 10_000 * (300 + 12 * 4)
    assert sum(array.nbytes for array in (packed[0].input_ids, packed[0].labels, packed[0].position_ids)) > 2000
