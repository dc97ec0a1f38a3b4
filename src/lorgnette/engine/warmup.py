"""Kernels compiled, loaded and chosen before they are needed: the models in small, run on zeros on a thread, while the
weights of the real ones are read and pictures are decoded.

A first call is slow for reasons that have nothing to do with its numbers: Triton compiles or looks in its cache, the
driver loads each kernel, cuBLAS chooses among its own. The widths and the rows are the real ones, so that the choices
are; only the layers are few. Where memory is too short even for that, the first use is slow, or says so.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle

import torch

from lorgnette.engine.build_decoder import blank
from lorgnette.engine.fast import FastEngine
from lorgnette.features.image_features import PATCHES_AT_ONCE, Features
from lorgnette.lora.flat_params import AdapterShape, FlatAdapter
from lorgnette.models.qwen2_vl.config import VisionShape
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.planning.memory import WARM_LAYERS
from lorgnette.types import PackedBatch, PictureGrid


def tower(shape: VisionShape, grids: Iterable[PictureGrid], device: torch.device, dtype: torch.dtype) -> None:
    """grids: some of those that will be asked for; they are repeated until a call is full."""
    small = replace(shape, depth=1)
    with suppress(torch.OutOfMemoryError):
        weights = {name: torch.zeros(size, device=device, dtype=dtype) for name, size in small.weights().items()}
        full = list(_full(grids))
        rows = sum(grid.t * grid.h * grid.w for grid in full)
        VisionTower(small, weights)(full, torch.zeros(rows, small.patch_numbers, device=device, dtype=dtype))


def decoder(
    shape: AdapterShape,
    batches: Sequence[PackedBatch],
    features: Features,
    dtype: torch.dtype,
    *,
    dropout: float,
    grouped: bool,
) -> None:
    """batches: as the training will see them. Forward and backward, and forward as it is evaluated."""
    small = replace(shape, text=replace(shape.text, layers=WARM_LAYERS))
    with suppress(torch.OutOfMemoryError):
        made, places = blank(small, features.device, dtype)
        for place in places.values():
            place.zero_()
        adapter = FlatAdapter(small, features.device)
        FastEngine(made, adapter, features, dropout=dropout, seed=0, grouped=grouped).warm(batches)


def _full(grids: Iterable[PictureGrid]) -> Iterator[PictureGrid]:
    rows = 0
    for grid in cycle(grids):
        rows += grid.t * grid.h * grid.w
        if rows > PATCHES_AT_ONCE:
            return
        yield grid
