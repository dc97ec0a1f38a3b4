"""Text counts up; an image's tokens share their start and count their rows and columns."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.models.qwen2_vl.positions import compute_position_ids
from lorgnette.types import Image, ImageGrid

IMAGE = Image(Path("x.png"))
EDGES = st.tuples(st.integers(1, 9), st.integers(1, 9))
LAYOUTS = st.tuples(st.lists(st.tuples(st.integers(0, 5), EDGES)), st.integers(0, 5))


@given(layout=LAYOUTS)
def test_each_run_starts_one_above_the_largest_position_so_far(
    layout: tuple[list[tuple[int, tuple[int, int]]], int],
) -> None:
    images, tail = layout
    starts, grids, length = [], [], 0
    for text, (rows, columns) in images:
        starts.append(length + text)
        grids.append(ImageGrid(IMAGE, 1, 2 * rows, 2 * columns, 2))
        length += text + rows * columns
    position_ids = compute_position_ids(length + tail, starts, grids)
    assert position_ids.shape == (3, length + tail)
    assert position_ids.dtype == np.int32
    is_image = np.zeros(length + tail, bool)
    for start, grid in zip(starts, grids, strict=True):
        is_image[start : start + grid.num_tokens] = True
        own = position_ids[:, start : start + grid.num_tokens] - (position_ids[:, :start].max(initial=-1) + 1)
        assert (own[0] == 0).all()
        assert own[1:].T.tolist() == [[i, j] for i in range(grid.h // 2) for j in range(grid.w // 2)]
    for row in np.flatnonzero(~is_image):
        assert (position_ids[:, row] == position_ids[:, :row].max(initial=-1) + 1).all()


def test_text_has_equal_coordinates() -> None:
    assert compute_position_ids(5, [], []).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert compute_position_ids(0, [], []).shape == (3, 0)


def test_an_image_takes_as_many_positions_as_its_longer_side() -> None:
    for edges in ((4, 20), (20, 4)):
        position_ids = compute_position_ids(21 + 2, [1], [ImageGrid(IMAGE, 1, *edges, 2)])
        assert position_ids[:, 1 + 20].tolist() == [1 + 10] * 3


def test_equal_layouts_share_one_read_only_array() -> None:
    first, second = (compute_position_ids(length, [1], [ImageGrid(IMAGE, 1, 4, 4, 2)]) for length in (6, 9))
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(first, second[:, :6])
    with pytest.raises(ValueError, match="read-only"):
        first += 1


def test_different_layouts_share_nothing() -> None:
    """Negative control: images differ in start, shape and number."""
    wide, tall = ImageGrid(IMAGE, 1, 4, 8, 2), ImageGrid(IMAGE, 1, 8, 4, 2)
    rows = [compute_position_ids(30, starts, grids) for starts, grids in (([1], [wide]), ([1], [tall]), ([2], [wide]),
            ([1, 12], [wide, tall]), ([1, 12], [tall, wide]), ([], []))]  # fmt: skip
    for first, second in combinations(rows, 2):
        assert not np.shares_memory(first, second)
        assert not np.array_equal(first, second)
