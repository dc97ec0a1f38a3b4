"""Runs the fast engine once on tensors without memory, inside of `record_launches`: what training and answers launch.

It is the engine's own code, from the warm-ups of a training to the generator, so no kernel is forgotten.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lorgnette.engine.loading import NO_MODULES, allocate_decoder
from lorgnette.engine.open_for_training import warm_up_decoder, warm_up_tower
from lorgnette.inference.generator import Generator
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4, quantize_nf4
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.registry import TextConfig, VisionConfig
from lorgnette.planning.limits import WARMUP_LAYERS
from lorgnette.processing.packing import pack
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid

_META = torch.device("meta")
_FEATURES: Any = SimpleNamespace(device=_META)
_NUM_TOKENS, _NUM_LABELS = 500, 100
_PROMPT_LENGTHS = (256, 250)
"""A prompt of whole blocks of 16 tokens and another: Triton compiles kernels for both."""
_SIDE = 8
"""Image tokens along a side of an image."""


def run_training(
    shape: AdapterShape, dtype: torch.dtype, dropout: float, nf4_modules: Mapping[str, bool] = NO_MODULES
) -> None:
    """A step, forward and backward, and an evaluation. nf4_modules: as of `allocate_decoder`."""
    batch = pack([_build_example(_NUM_TOKENS, _NUM_LABELS)], _NUM_LABELS)
    warm_up_decoder(shape, [batch], _FEATURES, dtype, dropout, nf4_modules)


def run_answers(
    shape: AdapterShape, dtype: torch.dtype, slots: Iterable[int], nf4_modules: Mapping[str, bool] = NO_MODULES
) -> None:
    """Prompts, and a step of generation. slots: of the KV caches, as `CacheShape` rounds them."""
    shape = replace(shape, text=replace(shape.text, num_layers=WARMUP_LAYERS))
    decoder, _ = allocate_decoder(shape, _META, dtype, nf4_modules)
    if shape.target_modules:
        FlatLoraParams(shape, _META).attach(decoder)
    generator = Generator(decoder, _FEATURES)
    for num_slots, use_adapter in product(sorted(set(slots)), {False, bool(shape.target_modules)}):
        cache = KVCache.from_config(CacheShape(1, num_slots).round_up(), shape.text, _META, dtype)
        for length in _PROMPT_LENGTHS:
            generator.prefill_rows(cache, [0], [_build_example(length, 0)], use_adapter=use_adapter)
        generator.decode_step(cache, cache.input_ids[:0], use_adapter=use_adapter)


def run_tower(config: VisionConfig, dtype: torch.dtype) -> None:
    """One block over images, and the levels behind it."""
    side = _SIDE * config.merge_size
    warm_up_tower(config, [ImageGrid(Image(Path("image")), 1, side, side, config.merge_size)], _META, dtype)


def run_nf4(config: TextConfig, rank: int, dtype: torch.dtype) -> None:
    """Every matrix of a layer, from its values to NF4 and back."""
    for rows, columns in config.linear_shapes.values():
        values = torch.empty(rows, columns, device=_META, dtype=dtype)
        for is_nested in (False, True):
            matrix = Nf4Matrix.allocate((rows, columns), _META, is_nested=is_nested)
            dequantize_nf4(matrix, torch.empty(rows, columns + rank, device=_META, dtype=dtype)[:, :columns])
        plain = Nf4Matrix.allocate((rows, columns), _META, is_nested=False)
        quantize_nf4(values, plain.packed, plain.absmax)


def _build_example(num_tokens: int, num_labels: int) -> Encoded:
    """Tokens without images. The last ones are labels."""
    ids = np.zeros(num_tokens, np.int32)
    labels = np.full(num_tokens, IGNORE_INDEX, np.int32)
    labels[num_tokens - num_labels :] = 0
    positions = np.broadcast_to(np.arange(num_tokens, dtype=np.int32), (3, num_tokens))
    return Encoded(Example("", (), Path(), 0), ids, labels, positions, (), ())
