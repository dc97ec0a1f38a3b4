import numpy as np
import pytest
from PIL import Image

from lorgnette.data import images
from lorgnette.data.images import convert_to_rgb


def read_pixel(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def test_rgb_is_returned_as_is() -> None:
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    assert convert_to_rgb(image) is image


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
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
def test_every_mode_becomes_rgb(mode: str, color: object, expected: tuple[int, ...]) -> None:
    assert read_pixel(convert_to_rgb(Image.new(mode, (2, 2), color))) == pytest.approx(expected, abs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_transparent_color_becomes_white(mode: str) -> None:
    image = Image.new(mode, (2, 2))
    image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    assert read_pixel(convert_to_rgb(image)) == (255, 255, 255)


def test_16_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert np.asarray(convert_to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_a_transparent_16_bit_value_becomes_white() -> None:
    image = Image.fromarray(np.array([[500, 65535, 0]], dtype=np.uint16))
    image.info["transparency"] = 500
    assert np.asarray(convert_to_rgb(image))[0, :, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 25700, 65535], [0, 100, 255]),
        ([-100, 0, 155], [0, 100, 255]),
        ([0, 0, 1_000_000], [0, 0, 255]),
    ],
)
def test_32_bit_integers_take_the_smallest_usual_range(values: list[int], expected: list[int]) -> None:
    assert np.asarray(convert_to_rgb(Image.fromarray(np.array([values], dtype=np.int32))))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
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
def test_floats_take_the_smallest_usual_range(values: list[float], expected: list[int]) -> None:
    assert (
        np.asarray(convert_to_rgb(Image.fromarray(np.array([values], dtype=np.float32))))[0, :, 0].tolist() == expected
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "I;16", "I", "F"])
def test_bands_do_not_change_a_pixel(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(
            rng.integers(-9 if mode == "I" else 0, 40_000, (50, 30)).astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode])
        )
        image.info["transparency"] = 7
    else:
        image = Image.fromarray(rng.integers(0, 255, (50, 30, 4), dtype=np.uint8), "RGBA").convert(mode)
        image.info |= {"transparency": 5} if mode == "P" else {"transparency": (0, 0, 0)} if mode == "RGB" else {}
    whole = convert_to_rgb(image)
    monkeypatch.setattr(images, "_BAND_PIXELS", 70)
    assert len(list(images._iter_bands(image.size))) == 25
    assert convert_to_rgb(image).tobytes() == whole.tobytes()
