"""Checks the boxes of a row against the sizes of its images. Knows nothing about files and models."""

from collections.abc import Sequence
from dataclasses import replace

from lorgnette.errors import LorgnetteError
from lorgnette.types import Box, Example

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


def check_boxes(example: Example, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise LorgnetteError for a box without area or more than one pixel outside its image.

    sizes: (width, height) of each of the example's images as people see them, after EXIF orientation.
    """
    for number, box in enumerate(example.boxes, start=1):
        width, height = size = sizes[box.image]
        corners = convert_to_pixels(box, size).corners
        name = f"box {number} ({box.text})" if len(corners) == 4 else f"point {number} ({box.text})"
        if len(corners) == 4 and (corners[0] >= corners[2] or corners[1] >= corners[3]):
            hint = "write left, top, right, bottom, or remove it"
            raise LorgnetteError(f"{name} has no area", hint=hint)
        if min(corners) < -_MAX_OUTSIDE or max(corners[::2]) > width + _MAX_OUTSIDE or (
            max(corners[1::2]) > height + _MAX_OUTSIDE
        ):  # fmt: skip
            message = f"{name} lies outside its image, which has {width}×{height} pixels"
            hint = "give pixels of the image file as people see it, after its EXIF rotation, or remove the box"
            raise LorgnetteError(message, where=str(example.images[box.image].path), hint=hint)
