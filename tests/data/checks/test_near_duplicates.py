"""The same image saved again is found, another one is not."""

import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorgnette.data.checks.near_duplicates import (
    MAX_PIXELS,
    MIN_SIDE,
    UPPER_BYTES,
    candidates,
    image_signature,
    near_duplicate_groups,
)
from lorgnette.data.images import decode_preview, load_image
from lorgnette.demo.scenes import draw_scene, sample_scene


def compute_signature(path: Path) -> bytes:
    size, preview, _ = decode_preview(path, min_side=MIN_SIDE, max_pixels=MAX_PIXELS)
    assert preview is not None
    return image_signature(preview, size)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("a.jpg", (320, 240), {"quality": 30}),
        ("a.png", (320, 240), {}),
        ("a.webp", (320, 240), {"quality": 60}),
        ("a.jpg", (160, 120), {"quality": 85}),
        ("a.jpg", (640, 480), {"quality": 85}),
        ("a.jpg", (203, 151), {"quality": 85}),
    ],
)
def test_an_image_saved_again_is_found_among_others(
    tmp_path: Path, name: str, size: tuple[int, int], options: Any
) -> None:
    rng = Random(3)
    scenes = [draw_scene(sample_scene(rng)).convert("RGB").resize((320, 240)) for _ in range(20)]
    for number, image in enumerate(scenes):
        image.save(tmp_path / f"{number}.jpg", quality=92)
    scenes[7].resize(size).save(tmp_path / name, **options)
    paths = [*(tmp_path / f"{number}.jpg" for number in range(20)), tmp_path / name]
    assert near_duplicate_groups([compute_signature(path) for path in paths]) == [[7, 20]]


@pytest.mark.parametrize("scale", [0.5, 0.63, 1 / 3])
def test_real_photographs_differ_and_their_copies_are_found(shared: Path, tmp_path: Path, scale: float) -> None:
    photographs = sorted((shared / "coco").rglob("*.jpg"))
    copies = []
    for path in photographs:
        with Image.open(path) as image:
            size = (int(image.width * scale), int(image.height * scale))
            image.convert("RGB").resize(size).save(tmp_path / path.name, quality=60)
        copies.append(tmp_path / path.name)
    signatures = [compute_signature(path) for path in photographs]
    assert near_duplicate_groups(signatures) == []
    count = len(photographs)
    assert near_duplicate_groups([*signatures, *map(compute_signature, copies)]) == [
        [index, index + count] for index in range(count)
    ]


def test_drawn_scenes_and_formulas_differ(shared: Path) -> None:
    """They resemble each other: the same shapes in other positions or colors, the same print."""
    rng = Random(20140)
    scenes = [
        draw_scene(sample_scene(rng)).convert("RGB").resize((16, 16), Image.Resampling.BOX).tobytes()
        for _ in range(300)
    ]
    assert near_duplicate_groups(scenes) == []
    assert near_duplicate_groups([compute_signature(path) for path in sorted((shared / "latex").rglob("*.png"))]) == []


def test_color_and_side_make_a_difference(tmp_path: Path) -> None:
    red, blue = bytes((200, 30, 30)) * 256, bytes((30, 30, 200)) * 256
    assert near_duplicate_groups([red, blue]) == []
    left = np.full((16, 16, 3), 255, np.uint8)
    left[:, :4] = 0
    assert near_duplicate_groups([left.tobytes(), left[:, ::-1].tobytes(), left.tobytes()]) == [[0, 2]]


def test_no_image_and_one_image_have_no_duplicates() -> None:
    assert near_duplicate_groups([]) == near_duplicate_groups([bytes(768)]) == []


def test_many_copies_are_one_group() -> None:
    assert near_duplicate_groups([bytes(768)] * 500) == [list(range(500))]


def test_candidates_include_every_group(shared: Path) -> None:
    photographs = [compute_signature(path) for path in sorted((shared / "coco").rglob("*.jpg"))]
    assert candidates(photographs) == []
    rng = np.random.default_rng(1)
    copies = [
        np.clip(np.frombuffer(signature, np.uint8) + rng.normal(0, 2, 768), 0, 255).astype(np.uint8).tobytes()
        for signature in photographs[::2]
    ]
    together = sorted(index for group in near_duplicate_groups(photographs + copies) for index in group)
    assert together == candidates(photographs + copies) == [*range(0, 80, 2), *range(80, 120)]
    uppers = [signature[:UPPER_BYTES] for signature in photographs + copies]
    assert candidates(uppers) == together


def test_a_common_sky_makes_candidates_but_no_group() -> None:
    sky, sea, land = bytes((90, 140, 220)) * 64, bytes((20, 60, 90)) * 192, bytes((90, 160, 60)) * 192
    assert candidates([sky + sea, land + sky, sky + land]) == [0, 2]
    assert near_duplicate_groups([sky + sea, land + sky, sky + land]) == []
    assert candidates([]) == candidates([sky]) == []


def test_all_of_a_chain_are_candidates() -> None:
    """Each looks like the next one, the first not like the third."""
    levels = [100, 106, 112, 118, 200]
    assert candidates([bytes([level]) * UPPER_BYTES for level in levels]) == [0, 1, 2, 3]


def test_many_equal_candidates_are_found_quickly() -> None:
    start = time.process_time()
    assert len(candidates([bytes([250]) * UPPER_BYTES] * 20_000)) == 20_000
    assert time.process_time() - start < 10


def test_the_signature_is_that_of_the_upright_image(tmp_path: Path) -> None:
    image = draw_scene(sample_scene(Random(1))).convert("RGB").resize((400, 240))
    image.save(tmp_path / "upright.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    assert near_duplicate_groups(
        [compute_signature(tmp_path / "upright.jpg"), compute_signature(tmp_path / "turned.jpg")]
    ) == [[0, 1]]


@pytest.mark.parametrize("size", [(640, 427), (500, 375), (280, 280), (211, 97), (45, 33), (16, 16), (9, 5)])
def test_a_jpeg_preview_has_the_signature_of_the_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """Also if its blocks reach beyond the image, and if cells end within a pixel."""
    rng = np.random.default_rng(7)
    path = tmp_path / "a.jpg"
    Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize(size).save(path, quality=95, subsampling=0)
    cells, whole = (
        np.frombuffer(signature, np.uint8).astype(int)
        for signature in (compute_signature(path), image_signature(load_image(path), size))
    )
    assert np.abs(cells - whole).mean() < 1.5
    assert np.abs(cells - whole).max() < 10


def test_a_cell_is_the_mean_over_its_area() -> None:
    """20 pixels on 16 cells: the second cell has 3/4 of the second pixel and half of the third."""
    image = Image.new("RGB", (20, 16))
    for x, level in enumerate((10, 100, 200)):
        image.paste((level, level, level), (x, 0, x + 1, 16))
    cells = np.frombuffer(image_signature(image, image.size), np.uint8).reshape(16, 16, 3)
    assert cells[3, :3, 0].tolist() == [round((10 + 0.25 * 100) / 1.25), round((0.75 * 100 + 0.5 * 200) / 1.25), 80]
    assert cells[:, 3:].max() == 0


def test_a_large_image_is_reduced_first() -> None:
    small = draw_scene(sample_scene(Random(5))).convert("RGB").resize((160, 120))
    large = small.resize((160 * 9 + 5, 120 * 9 + 4), Image.Resampling.BICUBIC)
    assert near_duplicate_groups([image_signature(small, small.size), image_signature(large, large.size)]) == [[0, 1]]


def test_twenty_thousand_signatures_are_compared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20_000, 4, 4, 3), dtype=np.uint8)
    signatures = [cells.repeat(4, 0).repeat(4, 1).tobytes() for cells in coarse]
    start = time.process_time()
    assert near_duplicate_groups([*signatures, signatures[5]]) == [[5, 20_000]]
    assert time.process_time() - start < 20
