"""The sizes in patches of distinct images in flat buffers, 24 bytes each; an `ImageGrid` is built when asked for."""

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int32

from lorgnette.data.example_table import view_int32
from lorgnette.data.image_table import ImageTable
from lorgnette.types import ImageGrid


class GridKey(NamedTuple):
    """What makes an `ImageGrid` equal to another."""

    path: str
    t: int
    h: int
    w: int
    merge: int


class GridTable(Sequence[ImageGrid]):
    """Grids equal to those that were added. They have numbers in the order of first use. images: those of the grids,
    which need not all have one."""

    def __init__(self, images: ImageTable) -> None:
        self.images, self._values = images, array("i")
        self._lookup = dict[tuple[int, ...], int]()

    def add(self, image: int, t: int, h: int, w: int, merge: int) -> int:
        """The number of a grid; it is added behind the others if it is new. image: its number in `images`."""
        number = self._lookup.setdefault((self.images.get_path_number(image), t, h, w, merge), len(self))
        if number == len(self):
            self._values.extend((image, t, h, w, merge))
        return number

    def drop_lookup(self) -> None:
        """Free the memory of the look-up, when no more grids are added."""
        self._lookup = {}

    def iter_values(self) -> Iterator[tuple[int, int, int, int, int]]:
        """What `add` takes, of each grid."""
        return zip(*[iter(self._values)] * 5, strict=True)

    def get_key(self, number: int) -> GridKey:
        image, *sizes = self._values[5 * number : 5 * number + 5]
        return GridKey(self.images.get_path(image), *sizes)

    def count_tokens(self) -> Int32[np.ndarray, " N"]:
        """`ImageGrid.num_tokens` of each."""
        _, t, h, w, merge = view_int32(self._values).reshape(-1, 5).T
        num_tokens: Int32[np.ndarray, " N"] = t * h * w // merge**2
        return num_tokens

    def __len__(self) -> int:
        return len(self._values) // 5

    @overload
    def __getitem__(self, index: int) -> ImageGrid: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageGrid]: ...
    def __getitem__(self, index: int | slice) -> ImageGrid | list[ImageGrid]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        image, *sizes = self._values[5 * number : 5 * number + 5]
        return ImageGrid(self.images[image], *sizes)
