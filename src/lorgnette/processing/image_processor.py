"""A picture to the vision tower's patches: size, grid, and the numbers, equal to transformers' Pillow processor.

T, h, w count patches; a picture of (h, w) patches yields h·w/merge² tokens.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """How pictures become patches: the checkpoint's constants and the run's size.

    size: (height, width) in pixels; None keeps the shape within least..most pixels.
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
        """The checkpoint's `preprocessor_config.json` with the run's size."""
        path = folder / "preprocessor_config.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            patch, merge = int(tree["patch_size"]), int(tree["merge_size"])
            mean, std = (tuple(map(float, tree[name])) for name in ("image_mean", "image_std"))
            temporal = int(tree["temporal_patch_size"])
            if min(patch, merge, temporal) < 1:
                raise ValueError("a size below 1")
        except FileNotFoundError:
            raise LorgnetteError(
                "preprocessor_config.json is missing", where=str(folder), hint="download the checkpoint again, whole"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise LorgnetteError(
                f"preprocessor_config.json cannot be read: {error!r}",
                where=str(path),
                hint="download the checkpoint again, whole",
            ) from None
        side = patch * merge
        least, most = (tokens * side * side for tokens in settings.image_tokens)
        return cls(patch, merge, temporal, mean, std, settings.image_size, least, most)  # type: ignore[arg-type]

    @property
    def token_side(self) -> int:
        """Pixels along one token's edge: heights and widths are multiples of it."""
        return self.patch_size * self.merge_size

    def compute_size(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) in pixels that a picture of that many pixels is resized to.

        A fixed size is rounded to whole tokens; otherwise `smart_resize` of transformers' qwen2_vl processor: the
        nearest multiples of a token's edge, within least..most pixels, the shape kept as well as may be.
        """
        if self.size is not None:
            rows, columns = (max(1, round(edge / self.token_side)) * self.token_side for edge in self.size)
            return rows, columns
        rows, columns = (round(edge / self.token_side) * self.token_side for edge in (height, width))
        if rows * columns > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows, columns = (
                max(self.token_side, math.floor(edge / shrink / self.token_side) * self.token_side)
                for edge in (height, width)
            )
        elif rows * columns < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(edge * grow / self.token_side) * self.token_side for edge in (height, width))
        return rows, columns

    def resize(self, image: PIL.Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The RGB picture, resized (bicubic)."""
        height, width = self.compute_size(image.width, image.height)
        return np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC))

    def build_normalization_table(self) -> Float32[np.ndarray, "256 3"]:
        """What each of a byte's values becomes in each channel."""
        levels = np.arange(256, dtype=np.float64) * (1 / 255)
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        normalised: np.ndarray = (levels.astype(np.float32)[:, None] - mean) / std
        return normalised

    def patchify(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "N D"]:
        """Normalised patches, D = 3 · temporal · patch²: the rows in the merger's order, the frame repeated in time."""
        table = self.build_normalization_table()
        rows, columns = pixels.shape[0] // self.patch_size, pixels.shape[1] // self.patch_size
        image = np.stack([table[pixels[:, :, channel], channel] for channel in range(3)])
        blocks = image.reshape(
            3,
            rows // self.merge_size,
            self.merge_size,
            self.patch_size,
            columns // self.merge_size,
            self.merge_size,
            self.patch_size,
        ).transpose(1, 4, 2, 5, 0, 3, 6)
        frames = np.broadcast_to(
            blocks[:, :, :, :, :, None], (*blocks.shape[:5], self.temporal_patch_size, *blocks.shape[5:])
        )
        return frames.reshape(rows * columns, -1)
