"""Operations are counted exactly; the assumed speed is reported."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette.config import TARGET_MODULES
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.model_config import TextConfig, VisionConfig
from lorgnette.models.registry import FAMILIES, parse_sizes
from lorgnette.planning.memory import Workload
from lorgnette.planning.throughput import ENGINE_SPEEDS, count_token_flops, count_tower_flops, estimate_time
from lorgnette.types import Image, ImageGrid

TEXT = TextConfig(28, 1536, 12, 2, 128, 8960, 151936, 1e-6, 1e6, (16, 24, 24), tie_word_embeddings=True)
VISION = VisionConfig(32, 1280, 16, 5120, 1536, 14, 2, 2, 3)
ADAPTER = AdapterShape(TEXT, TARGET_MODULES, 64, 1.0)
WORKLOAD = Workload("fast", ADAPTER, VISION, has_dropout=True, tokens=2100, labels=224)
GRID = ImageGrid(Image(Path("a.jpg")), 1, 20, 20, 2)


def test_flops_of_a_token_at_2b() -> None:
    """1.310 G frozen parameters in the projections, 73.9 M in the factors."""
    frozen, trained = 28 * (1536 * 2048 + 1536**2 + 3 * 1536 * 8960), 28 * 64 * 41216
    assert count_token_flops(WORKLOAD) == 4 * frozen + 6 * trained
    assert count_token_flops(replace(WORKLOAD, recompute_layers=28)) == 6 * frozen + 8 * trained


def test_flops_of_the_experts_that_a_token_passes() -> None:
    """Qwen3-VL-30B-A3B: 8 of 128 experts, and the router."""
    size = next(size for size in FAMILIES["qwen3_vl_moe"].sizes if "30B" in size.names[0])
    text, vision = parse_sizes(size.config)
    workload = replace(WORKLOAD, adapter=replace(ADAPTER, text=text), vision=vision)
    attention, experts = 2048 * (2 * 4096 + 2 * 512), 2048 * (128 + 8 * 3 * 768)
    trained = 48 * 64 * (2 * (2048 + 4096) + 2 * (2048 + 512))
    assert count_token_flops(workload) == 4 * 48 * (attention + experts) + 6 * trained


def test_flops_of_an_image_of_280_by_280() -> None:
    patches, merged = 400, 4 * 1280
    block = 1280 * (4 * 1280 + 2 * 5120) * patches + 2 * 1280 * patches**2
    total = 2 * (1176 * 1280 * patches + 32 * block + 100 * merged * (merged + 1536))
    assert count_tower_flops(VISION, GRID) == total
    assert total / 1e12 == pytest.approx(0.538, abs=5e-4)


def test_flops_of_windows() -> None:
    """280×280 pixels have windows of 8×8, 8×4 and 4×4 patches; the padding of the MLP is not counted."""
    tower = replace(
        VISION, model_type="qwen2_5_vl", intermediate_size=3420, window_size=112, full_attention_blocks=(7, 15, 23, 31)
    )
    windows = (64, 64, 32, 64, 64, 32, 32, 32, 16)
    assert sum(windows) == 400
    block, merged = 1280 * (4 * 1280 + 3 * 3420) * 400, 4 * 1280
    attention = 2 * 1280 * (4 * 400**2 + 28 * sum(n**2 for n in windows))
    total = 2 * (1176 * 1280 * 400 + 32 * block + attention + 100 * merged * (merged + 1536))
    assert count_tower_flops(tower, GRID) == total


def test_flops_of_deepstack() -> None:
    tower = replace(VISION, model_type="qwen3_vl", position_table=48)
    deep = replace(tower, deepstack_blocks=(8, 16, 24))
    merged = 4 * 1280
    assert count_tower_flops(tower, GRID) == count_tower_flops(VISION, GRID)
    assert count_tower_flops(deep, GRID) - count_tower_flops(tower, GRID) == 3 * 2 * 100 * merged * (merged + 1536)


def test_time_grows_with_the_work_and_depends_on_the_gpu() -> None:
    steps = {"tokens": 62 * 2100, "labels": 62 * 210, "num_microbatches": 62}
    time = estimate_time(WORKLOAD, 989.0, **steps, grids=[GRID])
    assert time.steps_tflops == ENGINE_SPEEDS["fast"].step_fraction * 989.0
    assert estimate_time(WORKLOAD, 989.0, **steps, grids=[GRID] * 3).features_s == pytest.approx(3 * time.features_s)
    slower = estimate_time(WORKLOAD, 121.0, **steps, grids=[])
    assert slower.steps_s > 4 * time.steps_s
    assert slower.features_s == 0


def test_the_reference_engine_is_bound_by_its_launches() -> None:
    steps = {"tokens": 100, "labels": 10, "num_microbatches": 10, "grids": []}
    reference = estimate_time(replace(WORKLOAD, engine="reference"), 989.0, **steps)
    assert reference.steps_s == 10 * ENGINE_SPEEDS["reference"].min_microbatch_s
    assert estimate_time(WORKLOAD, 989.0, **steps).steps_s < 0.1
