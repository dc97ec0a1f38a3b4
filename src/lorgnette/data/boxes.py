"""Checks the boxes of a row against the sizes of its images. Knows nothing about models."""

from collections.abc import Sequence
from dataclasses import replace

from lorgnette.data.images import is_turned
from lorgnette.errors import LorgnetteError
from lorgnette.types import Box, Example, Image

_MAX_OUTSIDE = 1.0
"""Pixels that a box may reach over an edge: annotations are often rounded. They are cut off."""


def convert_to_pixels(box: Box, size: tuple[int, int]) -> Box:
    """The box in pixels of its image. size: (width, height)."""
    if box.unit == "pixels":
        return box
    return replace(box, corners=tuple(value * size[i % 2] for i, value in enumerate(box.corners)), unit="pixels")


def sort_corners(corners: Sequence[float]) -> tuple[float, ...]:
    """Left before right, and upper before lower; a point as it is."""
    if len(corners) == 2:
        return tuple(corners)
    x1, y1, x2, y2 = corners
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def is_below_pixel(corners: Sequence[float]) -> bool:
    """Whether a box in pixels is less than one wide and high: shares of the sides, most likely."""
    return len(corners) == 4 and 0 < corners[2] - corners[0] < 1 and 0 < corners[3] - corners[1] < 1


def check_boxes(example: Example, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise LorgnetteError for a box without area, smaller than a pixel, or more than one pixel outside its image, or
    if the data gives the image another size, so that its boxes are in other places.

    sizes: (width, height) of each of the example's images as people see them, after EXIF orientation.
    """
    if example.boxes:
        for image, size in zip(example.images, sizes, strict=True):
            _check_image_size(image, size)
    for number, box in enumerate(example.boxes, start=1):
        width, height = size = sizes[box.image]
        corners = convert_to_pixels(box, size).corners
        source, is_point = box.source, len(corners) == 2
        name = source.name or f"{'point' if is_point else 'box'} {number}"
        name = f"{name} ({replace(box, corners=source.numbers or box.corners, written=()).text})"
        if len(corners) == 4 and (corners[0] >= corners[2] or corners[1] >= corners[3]):
            raise LorgnetteError(f"{name} has no area", hint=f"write {source.order}, or remove it")
        if box.unit == "pixels" and is_below_pixel(corners):
            hint = f"give {source.order} in {source.unit}, or remove it"
            raise LorgnetteError(f"{name} is smaller than a pixel", hint=hint)
        if min(corners) < -_MAX_OUTSIDE or max(corners[::2]) > width + _MAX_OUTSIDE or (
            max(corners[1::2]) > height + _MAX_OUTSIDE
        ):  # fmt: skip
            message = f"{name} lies outside its image, which has {width}×{height} pixels"
            hint = f"give {'x, y' if is_point else source.order} in {source.unit}, or remove it"
            raise LorgnetteError(message, where=str(example.images[box.image].path), hint=hint)


def _check_image_size(image: Image, size: tuple[int, int]) -> None:
    if image.size in (None, size):
        return
    (width, height), (own_width, own_height) = image.size, size
    message = f"the data gives its image {width}×{height} pixels, but the file has {own_width}×{own_height}"
    hint = "use the images that were annotated, or scale the boxes and correct the size"
    if image.size == size[::-1] and is_turned(image.path):
        message += ": its EXIF rotation swaps the sides, and the boxes are those of the stored image"
        hint = "annotate the upright image, or remove the rotation from the file's EXIF, so that it stays as stored"
    raise LorgnetteError(message, where=str(image.path), hint=hint)
