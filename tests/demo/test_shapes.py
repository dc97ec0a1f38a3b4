"""Every sticker shows its color, and no two kinds look alike at the model's resolution."""

import itertools

import numpy as np
import pytest
from PIL import Image

from lorgnette.demo.shapes import COLORS, KINDS, draw_sticker


def main_color(kind: str, color: str) -> str:
    """The palette color of most of the sticker's pixels, without rims and shades."""
    pixels = np.asarray(draw_sticker(kind, color, 90)).reshape(-1, 4).astype(int)
    shown = pixels[(pixels[:, 3] == 255) & (pixels[:, :3].max(axis=1) > 60)][:, :3]
    if color != "white":
        shown = shown[shown.min(axis=1) < 235]
    palette = np.asarray(list(COLORS.values()))
    plain = np.abs(shown[:, None] - palette).sum(axis=2) < 20
    return list(COLORS)[plain.sum(axis=0).argmax()]


@pytest.mark.parametrize("kind", KINDS)
def test_most_pixels_have_the_color(kind: str) -> None:
    assert {color: main_color(kind, color) for color in COLORS} == {color: color for color in COLORS}


def test_colors_are_far_apart() -> None:
    for first, second in itertools.combinations(COLORS.values(), 2):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 100


def test_kinds_differ_at_the_smallest_size() -> None:
    def render(kind: str) -> np.ndarray:
        flat = Image.new("RGB", (50, 50), (128, 128, 128))
        flat.paste(draw_sticker(kind, "red", 50), mask=draw_sticker(kind, "red", 50))
        return np.asarray(flat.resize((25, 25), Image.Resampling.BICUBIC)).astype(int)

    images = {kind: render(kind) for kind in KINDS}
    for a, b in itertools.combinations(KINDS, 2):
        assert np.abs(images[a] - images[b]).mean() > 8, (a, b)


def test_a_sticker_is_square_and_has_a_light_rim_outside_a_dark_one() -> None:
    for kind in KINDS:
        sticker = draw_sticker(kind, "blue", 94)
        assert sticker.size == (94, 94)
        assert sticker.mode == "RGBA"
        row = np.asarray(sticker)[30].astype(int)
        first = np.flatnonzero(row[:, 3] == 255)[0]
        assert row[first, :3].min() > 150, kind
        assert row[first : first + 6, :3].max(axis=1).min() < 110, kind


def test_mirrored_and_tilted_are_other_images_of_the_same_thing() -> None:
    plain, mirrored = draw_sticker("fish", "red", 60), draw_sticker("fish", "red", 60, mirrored=True)
    assert plain.tobytes() != mirrored.tobytes()
    assert plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).getbbox() == mirrored.getbbox()
    assert draw_sticker("fish", "red", 60, tilt=7).tobytes() != plain.tobytes()
