"""Any mode that Pillow opens → 8-bit RGB as a person sees it: on white, scaled, never clipped.

Knows nothing about files, orientation or what is wrong with a picture.
"""

import numpy as np
from PIL import Image

WHITE = (255, 255, 255)
_HIGH_BIT_MODES = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture in RGB. Transparency shows white, which is what papers, pages and viewers show behind it."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _HIGH_BIT_MODES:
        return _scale_to_8_bits(image)
    if image.has_transparency_data:
        return _composite_on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _composite_on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", image.size, WHITE)
    canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return canvas


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """More than 8 bits to 8. Pillow's own convert() clips at 255, which turns most of these pictures white."""
    values = np.asarray(image)
    low, high = _find_range(image.mode, values)
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    grey = np.nan_to_num(np.clip(scaled, 0, 255), nan=0.0).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _find_range(mode: str, values: np.ndarray) -> tuple[float, float]:
    """The values that become black and white.

    16-bit modes say it themselves. 32-bit integers and floats do not, so the smallest usual range that holds every
    value is taken (0–1 for floats, 0–255, 0–65535), else the picture's own lowest and highest value.
    """
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    fitting = next((white for white in usual if low >= 0.0 and high <= white), None)
    if fitting is not None:
        return 0.0, fitting
    return low, high if high > low else low + 1.0  # one value everywhere shows as black
