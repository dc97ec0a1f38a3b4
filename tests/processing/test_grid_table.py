"""Grids in flat buffers equal those that were added."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data.image_table import ImageTable
from lorgnette.processing.grid_table import GridTable
from lorgnette.types import Image, ImageGrid

IMAGES = [Image(Path("a/1.jpg")), Image(Path("a/1.jpg"), "x"), Image(Path("2.jpg"), size=(3, 2))]
GRIDS = st.lists(
    st.builds(
        ImageGrid,
        st.sampled_from(IMAGES),
        st.just(1),
        st.sampled_from([4, 8]),
        st.sampled_from([4, 1 << 15]),
        st.sampled_from([1, 2]),
    ),
    max_size=12,
)


@given(GRIDS)
def test_grids_come_back_as_they_were(grids: list[ImageGrid]) -> None:
    images, numbers = ImageTable(), dict[ImageGrid, int]()
    table = GridTable(images)
    expected = [numbers.setdefault(grid, len(numbers)) for grid in grids]
    assert [table.add(images.add(grid.image), grid.t, grid.h, grid.w, grid.merge) for grid in grids] == expected
    assert list(table) == table[:] == list(numbers)
    assert [grid.image.written for grid in table] == [grid.image.written for grid in numbers]
    assert table.count_tokens().tolist() == [grid.num_tokens for grid in numbers]
    keys = [(str(grid.image.path), grid.t, grid.h, grid.w, grid.merge) for grid in numbers]
    assert [table.get_key(number) for number in range(len(table))] == keys
    assert [(images[image], *sizes) for image, *sizes in table.iter_values()] == [
        (grid.image, grid.t, grid.h, grid.w, grid.merge) for grid in numbers
    ]
