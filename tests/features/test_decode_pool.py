"""Images are loaded on threads in groups of similar size."""

from pathlib import Path

import numpy as np
import pytest

from lorgnette.features import decode_pool
from lorgnette.features.decode_pool import DecodePool, ImageContent
from lorgnette.types import Image, ImageGrid
from tests.features.test_decode_process import PROCESSOR


def build_grids(*sides: int) -> list[ImageGrid]:
    return [ImageGrid(Image(Path(f"{i}.png")), 1, side, side, 2) for i, side in enumerate(sides)]


def test_every_image_is_loaded_once_in_order() -> None:
    grids, calls = build_grids(*[4] * 50), []

    def load(grid: ImageGrid) -> ImageContent:
        calls.append(grid)
        return ImageContent(grid.image.path.name.encode(), np.zeros((1, 1, 3), np.uint8))

    pool = DecodePool(PROCESSOR)
    contents = {
        grid: content for group in pool.start([grids[:20], grids[20:]], load) for grid, content in group.items()
    }
    assert list(contents) == grids
    assert sorted(calls, key=grids.index) == grids
    assert [content.key for content in contents.values()] == [grid.image.path.name.encode() for grid in grids]
    assert pool.wait_seconds > 0


def test_an_error_reaches_the_consumer() -> None:
    def fail(grid: ImageGrid) -> ImageContent:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(DecodePool(PROCESSOR).start([build_grids(4)], fail))


def test_groups_are_of_similar_size_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "MAX_PATCHES_PER_CALL", 100)
    sizes = [sum(g.h * g.w for g in group) for group in decode_pool.split_into_groups(build_grids(*[4] * 13))]
    assert sum(sizes) == 13 * 16
    assert max(sizes) <= 100
    assert min(sizes) >= 48, "without balancing the last group would have one image"
    alone = list(decode_pool.split_into_groups(build_grids(20, 20)))
    assert [len(group) for group in alone] == [1, 1], "an image above the bound is a group of its own"
