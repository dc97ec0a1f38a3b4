"""The settings that a card needs: none, then NF4, then a smaller adapter, then smaller images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorgnette.config import Settings
from lorgnette.models.registry import FAMILIES, parse_sizes
from lorgnette.planning.card_fit import Variant, find_variant, list_variants
from lorgnette.planning.memory import (
    GIB,
    EngineName,
    Workload,
    compute_usable_bytes,
    find_fit,
    measure_nf4,
    predict_memory,
)
from lorgnette.types import Image, ImageGrid

SIZES = {size.names[0]: size.config for family in FAMILIES.values() for size in family.sizes}
SMALL, LARGE = SIZES["Qwen/Qwen2-VL-2B-Instruct"], SIZES["Qwen/Qwen2-VL-7B-Instruct"]


def build_variants(config: dict[str, Any], settings: Settings, image_tokens: int) -> list[Variant]:
    """Of steps of 16 examples with one image, 45 tokens of text and 20 labels."""
    length = image_tokens + 45
    grid = ImageGrid(Image(Path("a.png")), 1, 2, 2 * image_tokens, 2)
    workload = Workload.from_settings(settings, config, "fast", (16 * length, 320), [], [grid] * 100)
    return list_variants(settings, config, workload, [(length, [image_tokens])], 28)


@pytest.mark.parametrize(
    ("config", "gib", "image_tokens", "words"),
    [
        (SMALL, 8, 100, ()), (SMALL, 8, 1280, ()), (LARGE, 24, 100, ()), (LARGE, 24, 1280, ()),
        (LARGE, 16, 100, ("quantization=nf4",)), (LARGE, 16, 1280, ("quantization=nf4",)),
        (LARGE, 12, 1280, ("quantization=nf4",)), (LARGE, 8, 100, ("quantization=nf4", "lora.rank=8")),
        (SMALL, 5, 1280, ("quantization=nf4",)),
    ],
)  # fmt: skip
def test_every_card_has_its_settings(
    config: dict[str, Any], gib: int, image_tokens: int, words: tuple[str, ...]
) -> None:
    settings = Settings(image_size=None, lora={"rank": 64})
    available = compute_usable_bytes(float(gib))
    variant, fit = find_variant(build_variants(config, settings, image_tokens), available)
    assert variant.words == words
    assert fit.peak_bytes <= available
    assert fit.max_tokens >= variant.longest_example
    less = find_variant(build_variants(config, settings, image_tokens)[: len(words)], available)
    assert less is None, "fewer settings are not enough"


def test_smaller_images_come_last_and_in_the_settings_own_words() -> None:
    by_tokens = build_variants(LARGE, Settings(image_size=None), 1280)
    assert [variant.words[-1:] for variant in by_tokens] == [
        (), ("quantization=nf4",), ("lora.rank=8",), ("image_tokens=4,640",), ("image_tokens=4,320",),
        ("image_tokens=4,160",),
    ]  # fmt: skip
    assert [variant.longest_example for variant in by_tokens[2:]] == [1325, 685, 365, 205]
    assert by_tokens[-1].words == ("quantization=nf4", "lora.rank=8", "image_tokens=4,160")
    by_size = build_variants(LARGE, Settings(image_size=(560, 560), quantization="nf4", lora={"rank": 4}), 400)
    assert [variant.words for variant in by_size] == [(), ("image_size=392x392",), ("image_size=280x280",)]
    assert by_size[1].longest_example == 45 + 14 * 14
    assert find_variant(by_size, GIB) is None


def test_nf4_takes_half_a_byte_and_a_scale_for_64_values() -> None:
    text, _ = parse_sizes(SMALL)
    linears = 28 * sum(o * i for o, i in text.linear_shapes.values())
    values, size = measure_nf4(text, Settings(quantization="nf4"), SMALL)
    assert values == linears
    assert size / values == pytest.approx(0.5 + (1 + 4 / 256) / 64)
    stored = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head", "layers.3.mlp"]}
    values, size = measure_nf4(text, Settings(), SMALL | {"quantization_config": stored})
    mlp = sum(o * i for name, (o, i) in text.linear_shapes.items() if name in ("gate_proj", "up_proj", "down_proj"))
    assert values == linears - mlp
    nested = {"quantization_config": None, "text_config": {**SMALL, "quantization_config": stored}}
    assert measure_nf4(text, Settings(), SMALL | nested) == (values, size)
    assert size / values == pytest.approx(0.5 + 4 / 64), "single quantization"
    assert measure_nf4(text, Settings(), SMALL) == (0, 0)


def test_a_second_fit_keeps_the_features_where_they_are() -> None:
    [variant, *_] = build_variants(LARGE, Settings(lora={"rank": 64}), 100)
    first = find_fit(variant.workload, 145, 30 * GIB)
    assert (first.max_tokens, first.feature_bytes) == (2320, 100 * 100 * 3584 * 2)
    second = find_fit(variant.workload, 145, 23 * GIB, first)
    assert second.max_tokens < first.max_tokens
    assert second.feature_bytes == first.feature_bytes
    assert second.peak_bytes <= 23 * GIB
    assert second.pool_bytes < first.pool_bytes
    again = find_fit(variant.workload, 145, 30 * GIB, first)
    assert (again.max_tokens, again.recompute_layers, again.pool_bytes) == (2320, 0, first.pool_bytes)


def test_a_start_in_turn_holds_either_tower_or_decoder() -> None:
    [variant, *_] = build_variants(LARGE, Settings(), 100)
    together, in_turn = (
        predict_memory(replace(variant.workload, is_loaded_in_turn=value)).phases for value in (False, True)
    )
    assert "warm-up" in together["features"]
    assert "warm-up" not in in_turn["features"]
    assert in_turn["features"]["weights"] == 0
    assert in_turn["features"]["vision tower"] == together["features"]["vision tower"] > 0
    assert sum(in_turn["warm-up"].values()) < sum(together["features"].values()) / 2
    assert in_turn["backward"] == together["backward"]


def test_several_gpus_share_the_layers_before_a_setting_changes() -> None:
    """As `train` does: not with NF4, and in the reference engine not where it cannot pack."""

    def count_shards(config: dict[str, Any], engine: EngineName, num_gpus: int, **settings: Any) -> list[int]:
        chosen = Settings(image_size=None, lora={"rank": 8}, **settings)
        workload = Workload.from_settings(chosen, config, engine, (2000, 320), [], [])
        variants = list_variants(chosen, config, workload, [(145, [100])], 28, num_gpus)
        return [variant.workload.num_shards for variant in variants if not variant.words]

    qwen3_5 = SIZES["Qwen/Qwen3.5-4B"]
    assert count_shards(LARGE, "fast", 1) == [1]
    assert count_shards(LARGE, "fast", 4) == count_shards(LARGE, "reference", 4) == [1, 4]
    assert count_shards(LARGE, "fast", 4, train={"fully_shard": True}) == [4]
    assert count_shards(LARGE, "fast", 4, train={"fully_shard": False}) == [1]
    assert count_shards(LARGE, "fast", 4, quantization="nf4") == count_shards(qwen3_5, "reference", 4) == [1]
