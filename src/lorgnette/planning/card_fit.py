"""Which settings make a training fit a GPU, besides what `train` reduces without being asked. Needs no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorgnette.config import Settings
from lorgnette.models.registry import find_family
from lorgnette.planning.memory import MemoryFit, Workload, find_fit, measure_nf4, predict_memory

_SMALL_RANK = 8
_MIN_IMAGE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """The training with other settings. words: these settings, empty for those of the user."""

    words: tuple[str, ...]
    workload: Workload
    longest_example: int


def list_variants(
    settings: Settings,
    hf_config: Mapping[str, Any],
    workload: Workload,
    examples: Sequence[tuple[int, Sequence[int]]],
    token_side: int,
    num_gpus: int = 1,
) -> list[Variant]:
    """The user's settings first, with layers whole and, over several GPUs, sharded; then with whole layers one more
    setting each time: the frozen weights in NF4, a smaller adapter, ever smaller images.

    examples: the tokens of each, and those of each of its images. token_side: pixels of an image token.
    """
    longest = max(length for length, _ in examples)
    variants, words = [Variant((), workload, longest)], list[str]()
    choice, can_shard = settings.train.fully_shard, num_gpus > 1 and not workload.nf4_values
    if workload.engine == "reference":
        can_shard &= find_family(hf_config.get("model_type")).can_pack
    if can_shard and choice is not False:
        sharded = Variant((), replace(workload, num_shards=num_gpus), longest)
        variants = [sharded] if choice is True else [*variants, sharded]
    if not workload.nf4_values and not workload.text.experts:
        nf4 = settings.model_copy(update={"quantization": "nf4"})
        values, size = measure_nf4(workload.text, nf4, hf_config)
        workload, words = replace(workload, nf4_values=values, nf4_bytes=size), ["quantization=nf4"]
        variants.append(Variant(tuple(words), workload, longest))
    if workload.adapter.rank > _SMALL_RANK:
        workload = replace(workload, adapter=replace(workload.adapter, rank=_SMALL_RANK))
        words.append(f"lora.rank={_SMALL_RANK}")
        variants.append(Variant(tuple(words), workload, longest))
    most = max((tokens for _, images in examples for tokens in images), default=0)
    for limit, word in _list_image_limits(settings, most, token_side):
        shortened = max(length - sum(max(tokens - limit, 0) for tokens in images) for length, images in examples)
        smaller = replace(
            workload,
            feature_tokens=workload.feature_tokens * limit // most,
            answer_tokens=max(workload.answer_tokens - (longest - shortened), 0),
        )
        variants.append(Variant((*words, word), smaller, shortened))
    return variants


def find_variant(variants: Sequence[Variant], available_bytes: int) -> tuple[Variant, MemoryFit] | None:
    """The first that fits; None if none does."""
    for variant in variants:
        if fit := find_fit(variant.workload, variant.longest_example, available_bytes):
            return variant, fit
    return None


def compute_least_bytes(variant: Variant) -> int:
    """What torch reserves at the least: with everything that `train` reduces by itself reduced as far as it goes."""
    workload = variant.workload.limit_tokens(variant.longest_example)
    if workload.engine == "fast":
        workload = replace(workload, recompute_layers=workload.text.num_layers, is_loaded_in_turn=True)
    return predict_memory(replace(workload, feature_tokens=0)).peak_bytes


def _list_image_limits(settings: Settings, most: int, token_side: int) -> Iterator[tuple[int, str]]:
    """(tokens of an image, the setting): a half, a quarter and an eighth of the most that one has now."""
    for halvings in (1, 2, 3):
        if (limit := most >> halvings) < _MIN_IMAGE_TOKENS:
            return
        if settings.image_size is None:
            yield limit, f"image_tokens={min(settings.image_tokens[0], limit)},{limit}"
            continue
        shrink = math.sqrt(limit / most)
        height, width = (max(math.floor(side * shrink / token_side), 1) * token_side for side in settings.image_size)
        yield height * width // token_side**2, f"image_size={height}x{width}"
