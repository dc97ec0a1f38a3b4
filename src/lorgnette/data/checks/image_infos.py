"""What a scan finds out about images, in flat buffers: 8 bytes an image, and more where pixels were looked at."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lorgnette.data.image_table import ImageTable


class ImageInfo(NamedTuple):
    """(width, height) after orientation; on request the signature, if possible, and the contrast: the largest
    difference of two pixels in a color, of 0–255.

    A JPEG's signature is usually only that of its upper quarter, which tells most images apart.
    """

    size: tuple[int, int]
    signature: bytes | None
    contrast: int | None = None


class ImageInfos(Mapping[Path, ImageInfo]):
    """The paths of a table of images, in its order, each with what is known of the image.

    To look up a path builds the table's look-up; to iterate does not.
    """

    def __init__(self, images: ImageTable, infos: Iterable[ImageInfo] = ()) -> None:
        """infos: of the first images, in the order of their numbers."""
        self._images, self._sizes = images, array("i")
        self._pixel_facts = dict[int, tuple[bytes | None, int | None]]()
        for number, info in enumerate(infos):
            self.add(number, info)

    def add(self, number: int, info: ImageInfo) -> None:
        """Add the info of an image if it is the next one; the earlier ones are known."""
        if 2 * number == len(self._sizes):
            self._sizes.extend(info.size)
            if info[1:] != (None, None):
                self._pixel_facts[number] = info.signature, info.contrast

    def __getitem__(self, path: Path) -> ImageInfo:
        number = self._images.find(str(path))
        if number is None:
            raise KeyError(path)
        return self._get_info(number)

    def __iter__(self) -> Iterator[Path]:
        return (self._images[number].path for number in self._images.iter_path_numbers())

    def __len__(self) -> int:
        return self._images.num_paths

    def iter_infos(self) -> Iterator[ImageInfo]:
        """The values, without a look-up."""
        return map(self._get_info, self._images.iter_path_numbers())

    def _get_info(self, number: int) -> ImageInfo:
        width, height = self._sizes[2 * number : 2 * number + 2]
        return ImageInfo((width, height), *self._pixel_facts.get(number, (None, None)))
