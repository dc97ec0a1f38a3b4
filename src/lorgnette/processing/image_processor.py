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

from lorgnette.config import Encode
from lorgnette.errors import LorgnetteError


@dataclass(frozen=True, slots=True)
class PictureRule:
    """How pictures become patches: the checkpoint's constants and the run's size.

    size: (height, width) in pixels; None keeps the shape within least..most pixels.
    """

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] | None
    least: int
    most: int

    @classmethod
    def of_folder(cls, folder: Path, encode: Encode) -> "PictureRule":
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
                "preprocessor_config.json is missing", where=str(folder), remedy="download the checkpoint again, whole"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise LorgnetteError(
                f"preprocessor_config.json cannot be read: {error!r}",
                where=str(path),
                remedy="download the checkpoint again, whole",
            ) from None
        side = patch * merge
        least, most = (tokens * side * side for tokens in encode.image_tokens)
        return cls(patch, merge, temporal, mean, std, encode.size, least, most)  # type: ignore[arg-type]

    @property
    def side(self) -> int:
        """Pixels along one token's edge: heights and widths are multiples of it."""
        return self.patch * self.merge

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) in pixels that a picture of that many pixels is resized to.

        A fixed size is rounded to whole tokens; otherwise `smart_resize` of transformers' qwen2_vl processor: the
        nearest multiples of a token's edge, within least..most pixels, the shape kept as well as may be.
        """
        if self.size is not None:
            rows, columns = (max(1, round(edge / self.side)) * self.side for edge in self.size)
            return rows, columns
        rows, columns = (round(edge / self.side) * self.side for edge in (height, width))
        if rows * columns > self.most:
            shrink = math.sqrt(height * width / self.most)
            rows, columns = (
                max(self.side, math.floor(edge / shrink / self.side) * self.side) for edge in (height, width)
            )
        elif rows * columns < self.least:
            grow = math.sqrt(self.least / (height * width))
            rows, columns = (math.ceil(edge * grow / self.side) * self.side for edge in (height, width))
        return rows, columns

    def pixels(self, picture: PIL.Image.Image) -> UInt8[np.ndarray, "H W 3"]:
        """The RGB picture, resized (bicubic)."""
        height, width = self.resized(picture.width, picture.height)
        return np.asarray(picture.resize((width, height), PIL.Image.Resampling.BICUBIC))

    def levels(self) -> Float32[np.ndarray, "256 3"]:
        """What each of a byte's values becomes in each channel."""
        levels = np.arange(256, dtype=np.float64) * (1 / 255)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normalised: np.ndarray = (levels.astype(np.float32)[:, None] - mean) / std
        return normalised

    def patches(self, pixels: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "N D"]:
        """Normalised patches, D = 3 · temporal · patch²: the rows in the merger's order, the frame repeated in time."""
        table = self.levels()
        rows, columns = pixels.shape[0] // self.patch, pixels.shape[1] // self.patch
        image = np.stack([table[pixels[:, :, channel], channel] for channel in range(3)])
        blocks = image.reshape(
            3, rows // self.merge, self.merge, self.patch, columns // self.merge, self.merge, self.patch
        ).transpose(1, 4, 2, 5, 0, 3, 6)
        frames = np.broadcast_to(blocks[:, :, :, :, :, None], (*blocks.shape[:5], self.temporal, *blocks.shape[5:]))
        return frames.reshape(rows * columns, -1)
