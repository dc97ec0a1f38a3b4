"""Turns an image into the vision tower's patches: size, grid and values, equal to transformers' Pillow processor.

An image of h × w patches becomes h·w/merge_size² tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import read_config, shorten
from lorgnette.types import ImageGrid

_HINT = "download the whole checkpoint again"
_SIZES = {"patch_size": 256, "merge_size": 16, "temporal_patch_size": 16}
"""Sizes in preprocessor_config.json, with the largest that is read."""


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """The constants of a checkpoint's preprocessor_config.json and the run's image size.

    size: (height, width) in pixels; None: each image keeps its shape, within min_pixels..max_pixels.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    size: tuple[int, int] | None
    min_pixels: int
    max_pixels: int

    @classmethod
    def from_folder(cls, folder: Path, settings: ProcessorSettings) -> "ImageProcessor":
        """Read the checkpoint's `preprocessor_config.json`. Raises LorgnetteError if it is missing or broken."""
        path = folder / "preprocessor_config.json"
        try:
            config = read_config(path, _HINT)
            patch_size, merge_size, temporal_patch_size = (_read_size(config, name) for name in _SIZES)
            mean, std = (_read_channels(config, name) for name in ("image_mean", "image_std"))
            _check_model(folder, (patch_size, merge_size, temporal_patch_size))
        except FileNotFoundError:
            raise LorgnetteError("preprocessor_config.json is missing", where=str(folder), hint=_HINT) from None
        except ValueError as error:
            message = f"preprocessor_config.json cannot be read: {error}"
            raise LorgnetteError(message, where=str(path), hint=_HINT) from None
        token_side = patch_size * merge_size
        min_pixels, max_pixels = (count * token_side * token_side for count in settings.image_tokens)
        return cls(
            patch_size, merge_size, temporal_patch_size, mean, std, settings.image_size, min_pixels, max_pixels
        )  # fmt: skip

    @property
    def token_side(self) -> int:
        """The side of one token in pixels; heights and widths are multiples of it."""
        return self.patch_size * self.merge_size

    def compute_size(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) in pixels to which an image of this width and height is resized.

        A fixed size is rounded to whole tokens. Otherwise it is `smart_resize` of transformers' Qwen2-VL processor: the
        nearest multiples of token_side within min_pixels..max_pixels that keep the shape as well as possible.
        """
        side = self.token_side
        if self.size is not None:
            return round_size(self.size, side)
        rows, columns = (round(edge / side) * side for edge in (height, width))
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows, columns = (max(side, math.floor(edge / shrink / side) * side) for edge in (height, width))
        elif rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(edge * grow / side) * side for edge in (height, width))
        return rows, columns

    def resize(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The pixels of an RGB image, resized (bicubic)."""
        return _resize(image, *self.compute_size(image.width, image.height))

    def resize_to(self, grid: ImageGrid, image: PIL.Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The pixels of the grid's image, resized to the grid. A grid may be of a processor with another `size`, such
        as that of the held-out prompts (predict.image_size=native)."""
        return _resize(image, grid.h * self.patch_size, grid.w * self.patch_size)

    def build_normalization_table(self) -> Float32[np.ndarray, "256 3"]:
        """The normalized value of each byte value in each channel."""
        values = np.arange(256, dtype=np.float64) * (1 / 255)
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        table: np.ndarray = (values.astype(np.float32)[:, None] - mean) / std
        return table

    def patchify(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "N D"]:
        """N normalized patches of D = 3 · temporal_patch_size · patch_size² values, in the merger's order.

        An image is one frame, repeated temporal_patch_size times.
        """
        patch, merge = self.patch_size, self.merge_size
        table = self.build_normalization_table()
        rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
        image = np.stack([table[pixels[:, :, channel], channel] for channel in range(3)])
        blocks = image.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        blocks = blocks.transpose(1, 4, 2, 5, 0, 3, 6)
        frames_shape = (*blocks.shape[:5], self.temporal_patch_size, *blocks.shape[5:])
        return np.broadcast_to(blocks[:, :, :, :, :, None], frames_shape).reshape(rows * columns, -1)


def round_size(size: tuple[int, int], token_side: int) -> tuple[int, int]:
    """A (height, width) in pixels in whole tokens, at least one."""
    height, width = (max(1, round(edge / token_side)) * token_side for edge in size)
    return height, width


def _resize(image: PIL.Image.Image, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC))


def _read_size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= _SIZES[name]:
        raise ValueError(f"{name} is {shorten(repr(value))}, not a whole number from 1 to {_SIZES[name]}")
    return value


def _check_model(folder: Path, sizes: tuple[int, int, int]) -> None:
    """Raises ValueError if the vision tower takes patches of other sizes."""
    path = folder / "config.json"
    vision = read_config(path, _HINT).get("vision_config") if path.is_file() else None
    for name, size in zip(("patch_size", "spatial_merge_size", "temporal_patch_size"), sizes, strict=True):
        if isinstance(vision, dict) and vision.get(name, size) != size:
            raise ValueError(f"{name.removeprefix('spatial_')} is {size}, in config.json {vision[name]}")


def _read_channels(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """Three numbers from 0 to 1; 0 is no image_std."""
    value: Any = config.get(name)
    is_valid = isinstance(value, list) and len(value) == 3
    is_valid = is_valid and all(type(item) in (int, float) and 0 <= item <= 1 for item in value)
    if not is_valid or (name == "image_std" and 0 in value):
        raise ValueError(f"{name} is {shorten(repr(value))}, not three numbers from 0 to 1")
    red, green, blue = map(float, value)
    return red, green, blue
