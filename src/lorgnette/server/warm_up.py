"""The first answers, before a server says that it is ready: kernels are compiled, decode steps captured, and every
adapter is seen to change what the base model answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float32
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.features.decode_pool import Pixels
from lorgnette.features.feature_lru import FeatureLru
from lorgnette.inference.continuous_batch import ContinuousBatch, DecodeRow
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.inference.sampling import SamplingParams
from lorgnette.server.models import ModelSet, ServedModel
from lorgnette.types import Encoded, Example, Image, ImageGrid, Turn

_SIDE = 224
_MAX_ADAPTERS = 7
"""That answer at once, with the base model: eight rows are the smallest batch of a GPU."""
_NUM_STEPS = 3
"""The second step of a kind is captured, and the third is replayed."""


def warm_up(models: ModelSet, batch: ContinuousBatch, features: FeatureLru) -> list[str]:
    """Let the base model and every adapter answer. Returns the adapters that change nothing, in sentences.

    Raises LorgnetteError if a model computes what is no number.
    """
    *tuned, base = models.models
    batch.capture_steps()
    prompt, pixels = build_prompt(base)
    features.encode(pixels)
    logits: dict[str, Tensor] = {}
    for start in range(0, max(len(tuned), 1), _MAX_ADAPTERS):
        rows = {
            model.name: DecodeRow(prompt, model.adapter, SamplingParams(_NUM_STEPS))
            for model in (base, *tuned[start : start + _MAX_ADAPTERS])
        }
        with _answer(batch, list(rows.values())):
            logits |= {name: batch.read_logits(row) for name, row in rows.items()}
    for name, values in logits.items():
        if not bool(values.isfinite().all()):
            hint = "use an adapter and a base model that answer with `lorgnette predict`"
            raise LorgnetteError("the model computes values that are no numbers", where=name, hint=hint)
    # One kind of rows alone is another decode step; so is one that draws its tokens.
    for model in {base.name: base, **{model.name: model for model in tuned[:1]}}.values():
        sampling = SamplingParams(_NUM_STEPS, temperature=1.0 if model.adapter is None else None)
        with _answer(batch, [DecodeRow(prompt, model.adapter, sampling)]):
            pass
    without = _compute_masked_logits(models, prompt) if tuned else None
    return [
        f"{model.name}: this adapter changes nothing; on a test image its logits are those of the base model"
        for model in tuned
        if without is not None and torch.equal(logits[model.name], without)
    ]


def build_prompt(model: ServedModel) -> tuple[Encoded, dict[ImageGrid, Pixels]]:
    """The model's prompt about a drawn image, without a file."""
    red, green = np.meshgrid(*[np.linspace(0, 255, _SIDE, dtype=np.uint8)] * 2)
    image = PIL.Image.fromarray(np.stack([red, green, red ^ green], -1))
    processor = replace(model.processor, read_size=lambda path: image.size)
    turn = Turn("user", (Image(Path("test image")), model.prompt))
    prompt = processor.encode(Example("test image", (turn,), Path("test image"), 1), add_generation_prompt=True)
    return prompt, {grid: processor.image_processor.resize(image) for grid in prompt.grids}


@torch.no_grad()
def _compute_masked_logits(models: ModelSet, prompt: Encoded) -> Float32[Tensor, " V"]:
    """The base model's first logits by the matrix products of the adapters: those of `use_adapter=False` are rounded
    otherwise."""
    decoder, device = models.generator.decoder, models.device
    shape = CacheShape(1, len(prompt.input_ids) + 1)
    cache = KVCache.from_config(shape, decoder.config, device, decoder.embed_tokens.dtype)
    mask = torch.ones(1, sum(models.adapter_ranks), dtype=torch.bool, device=device)
    models.generator.prefill_rows(cache, [0], [prompt], use_adapter=True, rank_mask=mask)
    return cache.logits[0]


@contextmanager
def _answer(batch: ContinuousBatch, rows: list[DecodeRow]) -> Iterator[None]:
    """Rows that have joined; they answer at the end, and leave."""
    batch.join(rows)
    try:
        yield
        for _ in range(_NUM_STEPS):
            batch.step()
    finally:
        for row in rows:
            batch.leave(row)
