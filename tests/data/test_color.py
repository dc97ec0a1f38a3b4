import numpy as np
import pytest
from PIL import Image

from lorgnette.data.color import convert_to_rgb


def pixel(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def test_rgb_stays_the_same_object() -> None:
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    assert convert_to_rgb(image) is image


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_modes(mode: str, colour: object, seen: tuple[int, ...]) -> None:
    assert pixel(convert_to_rgb(Image.new(mode, (2, 2), colour))) == pytest.approx(seen, abs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_colour_declared_transparent_is_white(mode: str) -> None:
    image = Image.new(mode, (2, 2))
    image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    assert pixel(convert_to_rgb(image)) == (255, 255, 255)


def test_16_bit_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert np.asarray(convert_to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_16_bit_with_a_transparent_value() -> None:
    image = Image.fromarray(np.array([[500, 65535, 0]], dtype=np.uint16))
    image.info["transparency"] = 500
    assert np.asarray(convert_to_rgb(image))[0, :, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25700, 65535], [0, 100, 255]),
        ([-100, 0, 155], [0, 100, 255]),
        ([0, 0, 1_000_000], [0, 0, 255]),
    ],
)
def test_32_bit_integers_take_the_smallest_usual_range(values: list[int], seen: list[int]) -> None:
    assert np.asarray(convert_to_rgb(Image.fromarray(np.array([values], dtype=np.int32))))[0, :, 0].tolist() == seen


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([float("inf"), 0.0, 1.0], [255, 0, 255]),
        ([5e5, 5e5, 5e5], [0, 0, 0]),
        ([float("nan")] * 3, [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_floats(values: list[float], seen: list[int]) -> None:
    assert np.asarray(convert_to_rgb(Image.fromarray(np.array([values], dtype=np.float32))))[0, :, 0].tolist() == seen
