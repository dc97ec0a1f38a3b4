"""Operations are counted as they are; the rest is an assumption that is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorgnette.config import LANGUAGE_TARGETS
from lorgnette.models.qwen2_vl.config import TextShape, VisionShape
from lorgnette.planning.memory import Work
from lorgnette.planning.throughput import GPUS, PACES, expected, row_flop, tower_flop
from lorgnette.types import Picture, PictureGrid

TEXT = TextShape(28, 1536, 12, 2, 128, 8960, 151936, 1e-6, 1e6, (16, 24, 24), tied=True)
VISION = VisionShape(32, 1280, 16, 5120, 1536, 14, 2, 2, 3)
WORK = Work("fast", TEXT, VISION, LANGUAGE_TARGETS, 64, dropout=True, rows=2100, labels=224)
GRID = PictureGrid(Picture(Path("a.jpg")), 1, 20, 20, 2)


def test_a_row_of_2b() -> None:
    """1.310 G frozen parameters in the projections, 73.9 M in the factors."""
    frozen, trained = 28 * (1536 * 2048 + 1536**2 + 3 * 1536 * 8960), 28 * 64 * 41216
    assert row_flop(WORK) == 4 * frozen + 6 * trained
    assert row_flop(replace(WORK, again=28)) == 6 * frozen + 8 * trained


def test_a_picture_of_280_by_280() -> None:
    patches, wide = 400, 4 * 1280
    block = 1280 * (4 * 1280 + 2 * 5120) * patches + 2 * 1280 * patches**2
    whole = 2 * (1176 * 1280 * patches + 32 * block + 100 * wide * (wide + 1536))
    assert tower_flop(VISION, GRID) == whole
    assert whole / 1e12 == pytest.approx(0.538, abs=5e-4)


def test_time_follows_the_work_and_the_gpu() -> None:
    whole = {"rows": 62 * 2100, "labels": 62 * 210, "passes": 62}
    one = expected(WORK, "H200", **whole, grids=[GRID])
    assert one.steps_tflops == PACES["fast"].steps * GPUS["H200"]
    assert expected(WORK, "H200", **whole, grids=[GRID] * 3).features_s == pytest.approx(3 * one.features_s)
    slower = expected(WORK, "L4", **whole, grids=[])
    assert slower.steps_s > 4 * one.steps_s
    assert slower.features_s == 0


def test_the_reference_engine_waits_for_its_launches() -> None:
    small = {"rows": 100, "labels": 10, "passes": 10, "grids": []}
    assert expected(replace(WORK, engine="reference"), "H200", **small).steps_s == 10 * PACES["reference"].pass_least_s
    assert expected(WORK, "H200", **small).steps_s < 0.1
