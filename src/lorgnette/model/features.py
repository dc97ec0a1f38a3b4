"""Image features: what the vision tower makes of a picture, [tokens, hidden].

While the tower is frozen a picture has the same features in every step and every epoch, so each distinct picture is
put through it once, before training. With the tower open to training, features are made anew in every pass.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from lorgnette.data import load as load_picture
from lorgnette.encode.pixels import PictureRule
from lorgnette.errors import LorgnetteError
from lorgnette.types import PictureGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pixels = UInt8[np.ndarray, "_ _ 3"]
Patches = Float32[np.ndarray, "_ D"]
Made = Pixels | Patches | LorgnetteError
Make = Callable[[PIL.Image.Image], Pixels | Patches]

PATCHES_AT_ONCE = 16384
"""Patches put through the tower in one call: bounds its memory, and is plenty to fill a GPU."""


class Tower:
    """The vision tower of a loaded model, as a function from patches to features."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._visual = model.get_submodule("model.visual")
        self._parameter = next(self._visual.parameters())

    def __call__(self, grids: Sequence[PictureGrid], patches: Sequence[Patches]) -> Float[Tensor, "P C"]:
        """Features of the pictures one after the other."""
        device, dtype = self._parameter.device, self._parameter.dtype
        shapes = torch.tensor([[grid.t, grid.h, grid.w] for grid in grids], device=device)
        made = self._visual(torch.from_numpy(np.concatenate(patches)).to(device, dtype), grid_thw=shapes)
        features: Tensor = made.pooler_output
        return features


class Features:
    """Features by picture: made once and kept (frozen tower), or made from kept pixels in every pass (live)."""

    def __init__(self, tower: Tower, rule: PictureRule, *, live: bool) -> None:
        self._tower, self._rule, self._live = tower, rule, live
        self._pixels: dict[PictureGrid, Pixels] = {}
        self._kept: dict[PictureGrid, Float[Tensor, "P C"]] = {}
        self.seconds_waited = 0.0
        """How long `prepare` had nothing to do but wait for pictures to be decoded."""

    def prepare(
        self, grids: Iterable[PictureGrid], *, seen: Callable[[int], None] = lambda count: None
    ) -> dict[PictureGrid, LorgnetteError]:
        """Decode the pictures on all cores and, for a frozen tower, make their features.

        seen(n) is called as n more pictures are done. Returns the pictures that could not be decoded, with why.
        """
        failed: dict[PictureGrid, LorgnetteError] = {}
        new = [grid for grid in dict.fromkeys(grids) if grid not in self._pixels and grid not in self._kept]
        for decoded in self._decoded(new, self._rule.pixels if self._live else self._patches):
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
            return self._tower(grids, [self._rule.patches(self._pixels[grid]) for grid in grids])
        return torch.cat([self._kept[grid] for grid in grids])

    def _decoded(self, grids: Sequence[PictureGrid], make: Make) -> Iterator[dict[PictureGrid, Made]]:
        """Groups of decoded pictures; the next group is decoded while the tower works on this one."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting: deque[dict[PictureGrid, Future[Made]]] = deque()
            for group in _grouped(grids):
                waiting.append({grid: pool.submit(_decode, grid, make) for grid in group})
                if len(waiting) == 2:
                    yield self._awaited(waiting.popleft())
            while waiting:
                yield self._awaited(waiting.popleft())

    def _awaited(self, group: dict[PictureGrid, "Future[Made]"]) -> dict[PictureGrid, Made]:
        begun = time.perf_counter()
        made = {grid: future.result() for grid, future in group.items()}
        self.seconds_waited += time.perf_counter() - begun
        return made

    def _patches(self, picture: PIL.Image.Image) -> Patches:
        return self._rule.patches(self._rule.pixels(picture))


def _decode(grid: PictureGrid, make: Make) -> Made:
    try:
        return make(load_picture(grid.picture.path))
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
