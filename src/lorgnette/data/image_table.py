"""Distinct images in flat buffers, which take about 30 bytes an image; each is built when it is asked for.

A `Path` of Python takes 700 bytes. Here the texts of folders are there once, and the names of files are in one buffer.
"""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from lorgnette.types import Image

Extras = tuple[str, tuple[int, int] | None]
"""`Image.written` and `Image.size`."""
_NO_EXTRAS: Extras = ("", None)
_CODEC = "utf-8", "surrogatepass"
"""A name that is no UTF-8 has surrogates in Python."""


class ImageTable(Sequence[Image]):
    """Images that are equal to those that were added, in every field. They have numbers in the order of first use."""

    def __init__(self) -> None:
        self._folders, self._folder_numbers = list[str](), dict[str, int]()
        self._names, self._ends, self._folders_of_images = bytearray(), array("q", [0]), array("i")
        self._extras, self._first_numbers = dict[int, Extras](), dict[int, int]()
        self._lookup: dict[str | tuple[str, Extras], int] | None = None
        self._shared_extras = dict[Extras, Extras]()
        self._last: tuple[int, Image] | None = None
        self._built: list[Image] | None = None

    def add(self, image: Image) -> int:
        """The number of an image; it is added behind the others if it is new."""
        return self._add(str(image.path), (image.written, image.size))

    def extend(self, images: "ImageTable") -> list[int]:
        """Add the images of another table. Returns their numbers in this one."""
        return [self._add(images.get_path(i), images._get_extras(i)) for i in range(len(images))]

    def build_all(self) -> list[Image]:
        """All images. They are kept until one is added, so that each path is one object: 700 bytes an image."""
        if self._built is None:
            self._built = self[:]
        return self._built

    def drop_lookup(self) -> None:
        """Free the memory of the look-up by path, about 250 bytes an image. `add` and `find` build it anew."""
        self._lookup, self._shared_extras = None, {}

    def get_path(self, number: int) -> str:
        """The path of an image, as text."""
        name = self._names[self._ends[number] : self._ends[number + 1]].decode(*_CODEC)
        return self._folders[self._folders_of_images[number]] + name

    def get_path_number(self, number: int) -> int:
        """The number of the first image with the same path."""
        return self._first_numbers.get(number, number)

    def find(self, path: str) -> int | None:
        """The number of the first image with this path; None if there is none."""
        if self._lookup is None:
            self._lookup = self._build_lookup()
        return self._lookup.get(path)

    def iter_path_numbers(self) -> Iterator[int]:
        """The numbers of the first images of all paths."""
        return (number for number in range(len(self)) if number not in self._first_numbers)

    @property
    def num_paths(self) -> int:
        return len(self) - len(self._first_numbers)

    def __len__(self) -> int:
        return len(self._folders_of_images)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        if self._built is not None:
            return self._built[index]
        number, last = range(len(self))[index], self._last
        if last is None or last[0] != number:  # rows that follow each other are often about one image
            self._last = last = number, Image(Path(self.get_path(number)), *self._get_extras(number))
        return last[1]

    def _get_extras(self, number: int) -> Extras:
        return self._extras.get(number, _NO_EXTRAS)

    def _add(self, path: str, extras: Extras) -> int:
        if self._lookup is None:
            self._lookup = self._build_lookup()
        new = len(self)
        first = self._lookup.setdefault(path, new)
        if first != new:
            if self._get_extras(first) == extras:
                return first
            if (number := self._lookup.setdefault((path, extras), new)) != new:
                return number
            self._first_numbers[new] = first
        self._built = None
        head, slash, name = path.rpartition("/")
        folder = self._folder_numbers.setdefault(head + slash, len(self._folders))
        if folder == len(self._folders):
            self._folders.append(head + slash)
        self._folders_of_images.append(folder)
        self._names += name.encode(*_CODEC)
        self._ends.append(len(self._names))
        if extras != _NO_EXTRAS:
            self._extras[new] = self._shared_extras.setdefault(extras, extras)
        return new

    def _build_lookup(self) -> dict[str | tuple[str, Extras], int]:
        """The first image of a path by the path, the others by their extras, too."""
        lookup = dict[str | tuple[str, Extras], int]()
        for number in range(len(self)):
            path = self.get_path(number)
            lookup[(path, self._get_extras(number)) if number in self._first_numbers else path] = number
        return lookup

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_lookup": None, "_shared_extras": {}, "_built": None}
