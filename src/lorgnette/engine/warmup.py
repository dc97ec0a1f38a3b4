"""Compiles, loads and selects kernels before they are needed: small models run on zeros on a thread.

The first call of a kernel is slow: Triton compiles it or reads its cache, the driver loads it, cuBLAS selects among its
variants. The small models have the real widths and numbers of tokens, so the same kernels are selected; only the layers
are few. If memory is too short even for that, the warm-up is skipped.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import cycle

import torch

from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import allocate_decoder
from lorgnette.features.image_features import Features
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.qwen2_vl.config import VisionConfig
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.planning.limits import MAX_PATCHES_PER_CALL, WARMUP_LAYERS
from lorgnette.types import ImageGrid, PackedBatch


def warm_up_tower(config: VisionConfig, grids: Iterable[ImageGrid], device: torch.device, dtype: torch.dtype) -> None:
    """Run a one-block tower on as many patches as the largest call. grids: some that will come; they are repeated."""
    small = replace(config, depth=1)
    with suppress(torch.OutOfMemoryError):
        shapes = small.list_weight_shapes()
        weights = {name: torch.zeros(size, device=device, dtype=dtype) for name, size in shapes.items()}
        call = list(_repeat_to_fill(grids))
        num_patches = sum(grid.t * grid.h * grid.w for grid in call)
        VisionTower(small, weights)(call, torch.zeros(num_patches, small.patch_dim, device=device, dtype=dtype))


def warm_up_decoder(
    shape: AdapterShape,
    batches: Sequence[PackedBatch],
    features: Features,
    dtype: torch.dtype,
    *,
    dropout: float,
    group_by_image: bool,
) -> None:
    """Run a small decoder forward and backward as in training, and forward as in evaluation."""
    small = replace(shape, text=replace(shape.text, num_layers=WARMUP_LAYERS))
    with suppress(torch.OutOfMemoryError):
        decoder, weights = allocate_decoder(small, features.device, dtype)
        for weight in weights.values():
            weight.zero_()
        adapter = FlatLoraParams(small, features.device)
        FastEngine(decoder, adapter, features, dropout=dropout, seed=0, group_by_image=group_by_image).warmup(batches)


def _repeat_to_fill(grids: Iterable[ImageGrid]) -> Iterator[ImageGrid]:
    num_patches = 0
    for grid in cycle(grids):
        num_patches += grid.t * grid.h * grid.w
        if num_patches > MAX_PATCHES_PER_CALL:
            return
        yield grid
