"""Text counts on; a picture's tokens share their start and count their rows and columns."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.processing.mrope import compute_position_ids
from lorgnette.types import Image, ImageGrid

PICTURE = Image(Path("x.png"))
EDGES = st.tuples(st.integers(1, 9), st.integers(1, 9))
LAYOUTS = st.tuples(st.lists(st.tuples(st.integers(0, 5), EDGES)), st.integers(0, 5))


@given(layout=LAYOUTS)
def test_each_run_starts_one_behind_the_largest_so_far(
    layout: tuple[list[tuple[int, tuple[int, int]]], int],
) -> None:
    pictures, tail = layout
    starts, grids, at = [], [], 0
    for text, (rows, columns) in pictures:
        starts.append(at + text)
        grids.append(ImageGrid(PICTURE, 1, 2 * rows, 2 * columns, 2))
        at += text + rows * columns
    found = compute_position_ids(at + tail, starts, grids)
    assert found.shape == (3, at + tail)
    assert found.dtype == np.int32
    inside = np.zeros(at + tail, bool)
    for start, grid in zip(starts, grids, strict=True):
        inside[start : start + grid.tokens] = True
        own = found[:, start : start + grid.tokens] - (found[:, :start].max(initial=-1) + 1)
        assert (own[0] == 0).all()
        assert own[1:].T.tolist() == [[i, j] for i in range(grid.h // 2) for j in range(grid.w // 2)]
    for row in np.flatnonzero(~inside):
        assert (found[:, row] == found[:, :row].max(initial=-1) + 1).all()


def test_text_alone_is_counted_in_all_three() -> None:
    assert compute_position_ids(5, [], []).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert compute_position_ids(0, [], []).shape == (3, 0)


def test_a_long_picture_takes_its_longer_edge_of_positions() -> None:
    for edges in ((4, 20), (20, 4)):
        found = compute_position_ids(21 + 2, [1], [ImageGrid(PICTURE, 1, *edges, 2)])
        assert found[:, 1 + 20].tolist() == [1 + 10] * 3


def test_rows_share_what_they_have_in_common_and_nobody_may_write_to_it() -> None:
    one, other = (compute_position_ids(length, [1], [ImageGrid(PICTURE, 1, 4, 4, 2)]) for length in (6, 9))
    assert np.shares_memory(one, other)
    np.testing.assert_array_equal(one, other[:, :6])
    with pytest.raises(ValueError, match="read-only"):
        one += 1


def test_rows_that_differ_share_nothing() -> None:
    """Negative control: by what may be told apart, pictures' starts, shapes and number."""
    wide, tall = ImageGrid(PICTURE, 1, 4, 8, 2), ImageGrid(PICTURE, 1, 8, 4, 2)
    rows = [compute_position_ids(30, starts, grids) for starts, grids in (([1], [wide]), ([1], [tall]), ([2], [wide]),
            ([1, 12], [wide, tall]), ([1, 12], [tall, wide]), ([], []))]  # fmt: skip
    for one, other in combinations(rows, 2):
        assert not np.shares_memory(one, other)
        assert not np.array_equal(one, other)
