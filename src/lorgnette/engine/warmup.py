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

from lorgnette.engine.build_decoder import allocate_decoder
from lorgnette.engine.fast import FastEngine
from lorgnette.features.image_features import MAX_PATCHES_PER_CALL, Features
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.qwen2_vl.config import VisionConfig
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.planning.memory import WARMUP_LAYERS
from lorgnette.types import ImageGrid, PackedBatch


def warm_up_tower(shape: VisionConfig, grids: Iterable[ImageGrid], device: torch.device, dtype: torch.dtype) -> None:
    """grids: some of those that will be asked for; they are repeated until a call is full."""
    small = replace(shape, depth=1)
    with suppress(torch.OutOfMemoryError):
        weights = {
            name: torch.zeros(size, device=device, dtype=dtype) for name, size in small.list_weight_shapes().items()
        }
        full = list(_repeat_to_fill(grids))
        rows = sum(grid.t * grid.h * grid.w for grid in full)
        VisionTower(small, weights)(full, torch.zeros(rows, small.patch_dim, device=device, dtype=dtype))


def warm_up_decoder(
    shape: AdapterShape,
    batches: Sequence[PackedBatch],
    features: Features,
    dtype: torch.dtype,
    *,
    dropout: float,
    group_by_image: bool,
) -> None:
    """batches: as the training will see them. Forward and backward, and forward as it is evaluated."""
    small = replace(shape, text=replace(shape.text, num_layers=WARMUP_LAYERS))
    with suppress(torch.OutOfMemoryError):
        made, places = allocate_decoder(small, features.device, dtype)
        for place in places.values():
            place.zero_()
        adapter = FlatLoraParams(small, features.device)
        FastEngine(made, adapter, features, dropout=dropout, seed=0, group_by_image=group_by_image).warmup(batches)


def _repeat_to_fill(grids: Iterable[ImageGrid]) -> Iterator[ImageGrid]:
    rows = 0
    for grid in cycle(grids):
        rows += grid.t * grid.h * grid.w
        if rows > MAX_PATCHES_PER_CALL:
            return
        yield grid
