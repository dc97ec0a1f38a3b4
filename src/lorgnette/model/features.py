"""Image features: what the vision tower makes of a picture, [tokens, hidden].

While the tower is frozen a picture has the same features in every step and every epoch, so each distinct picture is
put through it once, before training. With the tower open to training, features are made anew in every pass.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lorgnette.data import load as load_picture
from lorgnette.encode.pixels import PictureRule
from lorgnette.errors import LorgnetteError
from lorgnette.types import PictureGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pixels = UInt8[np.ndarray, "H W 3"]

PATCHES_AT_ONCE = 16384
"""Patches put through the tower in one call: bounds its memory, and is plenty to fill a GPU."""


class Tower:
    """The vision tower of a loaded model, as a function from pixels to features."""

    def __init__(self, model: "PreTrainedModel", rule: PictureRule) -> None:
        self._visual = model.get_submodule("model.visual")
        self._rule = rule
        self._parameter = next(self._visual.parameters())

    def __call__(self, grids: Sequence[PictureGrid], pixels: Sequence[Pixels]) -> Float[Tensor, "P C"]:
        """Features of the pictures one after the other."""
        device, dtype = self._parameter.device, self._parameter.dtype
        patches = np.concatenate([self._rule.patches(picture) for picture in pixels])
        shapes = torch.tensor([[grid.t, grid.h, grid.w] for grid in grids], device=device)
        made = self._visual(torch.from_numpy(patches).to(device, dtype), grid_thw=shapes)
        features: Tensor = made.pooler_output
        return features


class Features:
    """Features by picture: made once and kept (frozen tower), or made from kept pixels in every pass (live)."""

    def __init__(self, tower: Tower, rule: PictureRule, *, live: bool) -> None:
        self._tower, self._rule, self._live = tower, rule, live
        self._pixels: dict[PictureGrid, Pixels] = {}
        self._kept: dict[PictureGrid, Float[Tensor, "P C"]] = {}

    def prepare(
        self, grids: Iterable[PictureGrid], *, seen: Callable[[int], None] = lambda count: None
    ) -> dict[PictureGrid, LorgnetteError]:
        """Decode the pictures on all cores and, for a frozen tower, make their features.

        seen(n) is called as n more pictures are done. Returns the pictures that could not be decoded, with why.
        """
        failed: dict[PictureGrid, LorgnetteError] = {}
        new = [grid for grid in dict.fromkeys(grids) if grid not in self._pixels and grid not in self._kept]
        for decoded in self._decoded(new):
            failed |= {grid: got for grid, got in decoded.items() if isinstance(got, LorgnetteError)}
            good = {grid: got for grid, got in decoded.items() if not isinstance(got, LorgnetteError)}
            if self._live:
                self._pixels |= good
            elif good:
                with torch.no_grad():
                    features = self._tower(list(good), list(good.values()))
                parts = torch.split(features, [grid.tokens for grid in good])
                self._kept |= dict(zip(good, parts, strict=True))
            seen(len(decoded))
        return failed

    def of(self, grids: Sequence[PictureGrid]) -> Float[Tensor, "P C"]:
        """Features of the pictures one after the other, as PackedBatch.feature_rows counts them."""
        if self._live:
            return self._tower(grids, [self._pixels[grid] for grid in grids])
        return torch.cat([self._kept[grid] for grid in grids])

    def _decoded(self, grids: Sequence[PictureGrid]) -> Iterator[dict[PictureGrid, Pixels | LorgnetteError]]:
        """Groups of decoded pictures; the next group is decoded while the tower works on this one."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting: deque[dict[PictureGrid, Future[Pixels | LorgnetteError]]] = deque()
            for group in _grouped(grids):
                waiting.append({grid: pool.submit(self._decode, grid) for grid in group})
                if len(waiting) == 2:
                    yield {grid: made.result() for grid, made in waiting.popleft().items()}
            for last in waiting:
                yield {grid: made.result() for grid, made in last.items()}

    def _decode(self, grid: PictureGrid) -> Pixels | LorgnetteError:
        try:
            return self._rule.pixels(load_picture(grid.picture.path))
        except LorgnetteError as error:
            return error


def _grouped(grids: Sequence[PictureGrid]) -> Iterator[list[PictureGrid]]:
    group: list[PictureGrid] = []
    for grid in grids:
        if group and sum(g.h * g.w for g in group) + grid.h * grid.w > PATCHES_AT_ONCE:
            yield group
            group = []
        group.append(grid)
    if group:
        yield group
