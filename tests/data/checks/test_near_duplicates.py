"""The same picture saved anew is found, another one is not."""

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


def sketched(path: Path) -> bytes:
    size, seen, _ = decode_preview(path, min_side=MIN_SIDE, max_pixels=MAX_PIXELS)
    assert seen is not None
    return image_signature(seen, size)


@pytest.mark.parametrize(
    ("name", "size", "how"),
    [
        ("a.jpg", (320, 240), {"quality": 30}),
        ("a.png", (320, 240), {}),
        ("a.webp", (320, 240), {"quality": 60}),
        ("a.jpg", (160, 120), {"quality": 85}),
        ("a.jpg", (640, 480), {"quality": 85}),
        ("a.jpg", (203, 151), {"quality": 85}),
    ],
)
def test_saved_anew_it_is_found_among_others(tmp_path: Path, name: str, size: tuple[int, int], how: Any) -> None:
    rng = Random(3)
    whole = [draw_scene(sample_scene(rng)).convert("RGB").resize((320, 240)) for _ in range(20)]
    for number, picture in enumerate(whole):
        picture.save(tmp_path / f"{number}.jpg", quality=92)
    whole[7].resize(size).save(tmp_path / name, **how)
    paths = [*(tmp_path / f"{number}.jpg" for number in range(20)), tmp_path / name]
    assert near_duplicate_groups([sketched(path) for path in paths]) == [[7, 20]]


@pytest.mark.parametrize("scale", [0.5, 0.63, 1 / 3])
def test_real_photographs_are_all_different_and_all_found_again(shared: Path, tmp_path: Path, scale: float) -> None:
    photographs = sorted((shared / "coco").rglob("*.jpg"))
    again = []
    for path in photographs:
        with Image.open(path) as image:
            size = (int(image.width * scale), int(image.height * scale))
            image.convert("RGB").resize(size).save(tmp_path / path.name, quality=60)
        again.append(tmp_path / path.name)
    sketches = [sketched(path) for path in photographs]
    assert near_duplicate_groups(sketches) == []
    count = len(photographs)
    assert near_duplicate_groups([*sketches, *map(sketched, again)]) == [
        [place, place + count] for place in range(count)
    ]


def test_drawn_scenes_and_formulas_differ(shared: Path) -> None:
    """Much in common with each other: the same shapes elsewhere or in other colours, the same kind of print."""
    rng = Random(20140)
    scenes = [
        draw_scene(sample_scene(rng)).convert("RGB").resize((16, 16), Image.Resampling.BOX).tobytes()
        for _ in range(300)
    ]
    assert near_duplicate_groups(scenes) == []
    assert near_duplicate_groups([sketched(path) for path in sorted((shared / "latex").rglob("*.png"))]) == []


def test_colour_counts_and_so_does_the_side(tmp_path: Path) -> None:
    red, blue = bytes((200, 30, 30)) * 256, bytes((30, 30, 200)) * 256
    assert near_duplicate_groups([red, blue]) == []
    left = np.full((16, 16, 3), 255, np.uint8)
    left[:, :4] = 0
    assert near_duplicate_groups([left.tobytes(), left[:, ::-1].tobytes(), left.tobytes()]) == [[0, 2]]


def test_nothing_and_one() -> None:
    assert near_duplicate_groups([]) == near_duplicate_groups([bytes(768)]) == []


def test_many_of_one_picture_are_one_group() -> None:
    assert near_duplicate_groups([bytes(768)] * 500) == [list(range(500))]


def test_whoever_is_in_a_group_is_a_suspect_and_few_others(shared: Path) -> None:
    photographs = [sketched(path) for path in sorted((shared / "coco").rglob("*.jpg"))]
    assert candidates(photographs) == []
    rng = np.random.default_rng(1)
    again = [
        np.clip(np.frombuffer(each, np.uint8) + rng.normal(0, 2, 768), 0, 255).astype(np.uint8).tobytes()
        for each in photographs[::2]
    ]
    together = sorted(place for group in near_duplicate_groups(photographs + again) for place in group)
    assert together == candidates(photographs + again) == [*range(0, 80, 2), *range(80, 120)]
    uppers = [each[:UPPER_BYTES] for each in photographs + again]
    assert candidates(uppers) == together


def test_the_same_sky_is_suspected_and_no_group() -> None:
    sky, sea, land = bytes((90, 140, 220)) * 64, bytes((20, 60, 90)) * 192, bytes((90, 160, 60)) * 192
    assert candidates([sky + sea, land + sky, sky + land]) == [0, 2]
    assert near_duplicate_groups([sky + sea, land + sky, sky + land]) == []
    assert candidates([]) == candidates([sky]) == []


def test_all_of_a_chain_are_suspects() -> None:
    """Each looks like the next one, the first not like the third."""
    levels = [100, 106, 112, 118, 200]
    assert candidates([bytes([level]) * UPPER_BYTES for level in levels]) == [0, 1, 2, 3]


def test_many_white_skies_are_found_in_no_time() -> None:
    begun = time.process_time()
    assert len(candidates([bytes([250]) * UPPER_BYTES] * 20_000)) == 20_000
    assert time.process_time() - begun < 10


def test_a_turned_picture_is_sketched_as_it_is_seen(tmp_path: Path) -> None:
    picture = draw_scene(sample_scene(Random(1))).convert("RGB").resize((400, 240))
    picture.save(tmp_path / "upright.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", exif=exif)
    assert near_duplicate_groups([sketched(tmp_path / "upright.jpg"), sketched(tmp_path / "turned.jpg")]) == [[0, 1]]


@pytest.mark.parametrize("size", [(640, 427), (500, 375), (280, 280), (211, 97), (45, 33), (16, 16), (9, 5)])
def test_a_jpeg_at_a_fraction_gives_the_cells_of_the_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """Also where its blocks reach beyond the picture, and where cells end within a pixel."""
    rng = np.random.default_rng(7)
    path = tmp_path / "a.jpg"
    Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize(size).save(path, quality=95, subsampling=0)
    cells, whole = (
        np.frombuffer(made, np.uint8).astype(int) for made in (sketched(path), image_signature(load_image(path), size))
    )
    assert np.abs(cells - whole).mean() < 1.5
    assert np.abs(cells - whole).max() < 10


def test_a_cell_is_the_mean_over_its_area() -> None:
    """20 pixels on 16 cells: the second cell has 3/4 of the second pixel and half of the third."""
    seen = Image.new("RGB", (20, 16))
    for place, level in enumerate((10, 100, 200)):
        seen.paste((level, level, level), (place, 0, place + 1, 16))
    cells = np.frombuffer(image_signature(seen, seen.size), np.uint8).reshape(16, 16, 3)
    assert cells[3, :3, 0].tolist() == [round((10 + 0.25 * 100) / 1.25), round((0.75 * 100 + 0.5 * 200) / 1.25), 80]
    assert cells[:, 3:].max() == 0


def test_a_large_picture_is_reduced_on_the_way() -> None:
    small = draw_scene(sample_scene(Random(5))).convert("RGB").resize((160, 120))
    large = small.resize((160 * 9 + 5, 120 * 9 + 4), Image.Resampling.BICUBIC)
    assert near_duplicate_groups([image_signature(small, small.size), image_signature(large, large.size)]) == [[0, 1]]


def test_twenty_thousand_are_compared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20_000, 4, 4, 3), dtype=np.uint8)
    sketches = [cells.repeat(4, 0).repeat(4, 1).tobytes() for cells in coarse]
    begun = time.process_time()
    assert near_duplicate_groups([*sketches, sketches[5]]) == [[5, 20_000]]
    assert time.process_time() - begun < 20
