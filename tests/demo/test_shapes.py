"""Every sticker shows its colour, and no two kinds look alike at the size the model sees."""

import itertools

import numpy as np
import pytest
from PIL import Image

from lorgnette.demo.shapes import COLORS, KINDS, draw_sticker


def main_colour(kind: str, colour: str) -> str:
    """The palette's colour nearest to most of the sticker's own pixels, rims and shades left out."""
    pixels = np.asarray(draw_sticker(kind, colour, 90)).reshape(-1, 4).astype(int)
    shown = pixels[(pixels[:, 3] == 255) & (pixels[:, :3].max(axis=1) > 60)][:, :3]
    if colour != "white":
        shown = shown[shown.min(axis=1) < 235]
    palette = np.asarray(list(COLORS.values()))
    plain = np.abs(shown[:, None] - palette).sum(axis=2) < 20
    return list(COLORS)[plain.sum(axis=0).argmax()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_main_area_has_the_colour(kind: str) -> None:
    assert {colour: main_colour(kind, colour) for colour in COLORS} == {colour: colour for colour in COLORS}


def test_colours_are_far_apart() -> None:
    for one, other in itertools.combinations(COLORS.values(), 2):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 100


def test_kinds_differ_at_the_smallest_size_the_model_sees() -> None:
    def seen(kind: str) -> np.ndarray:
        flat = Image.new("RGB", (50, 50), (128, 128, 128))
        flat.paste(draw_sticker(kind, "red", 50), mask=draw_sticker(kind, "red", 50))
        return np.asarray(flat.resize((25, 25), Image.Resampling.BICUBIC)).astype(int)

    pictures = {kind: seen(kind) for kind in KINDS}
    for one, other in itertools.combinations(KINDS, 2):
        assert np.abs(pictures[one] - pictures[other]).mean() > 8, (one, other)


def test_a_sticker_is_square_and_has_a_light_rim_outside_a_dark_one() -> None:
    for kind in KINDS:
        cut = draw_sticker(kind, "blue", 94)
        assert cut.size == (94, 94)
        assert cut.mode == "RGBA"
        row = np.asarray(cut)[30].astype(int)
        first = np.flatnonzero(row[:, 3] == 255)[0]
        assert row[first, :3].min() > 150, kind
        assert row[first : first + 6, :3].max(axis=1).min() < 110, kind


def test_mirrored_and_tilted_are_other_pictures_of_the_same_thing() -> None:
    plain, mirrored = draw_sticker("fish", "red", 60), draw_sticker("fish", "red", 60, mirrored=True)
    assert plain.tobytes() != mirrored.tobytes()
    assert plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).getbbox() == mirrored.getbbox()
    assert draw_sticker("fish", "red", 60, tilt=7).tobytes() != plain.tobytes()
