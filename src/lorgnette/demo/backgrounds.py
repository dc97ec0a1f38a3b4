"""Where a scene plays: six backgrounds, each in a few fixed variants.

Knows nothing about things. A variant moves clouds, waves and flakes about; it changes no fact that a caption states.
"""

import random
from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw

from lorgnette.demo.shapes import Rgb

NUM_VARIANTS = 8
SUPERSAMPLING = 2


class _Brush:
    """Draws in the unit square over the whole picture."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def fill_gradient(self, y0: float, y1: float, upper: Rgb, lower: Rgb) -> None:
        """Fill the full width between two heights, one colour running into the other."""
        top, bottom = round(y0 * self.side), round(y1 * self.side)
        for y in range(top, bottom):
            share = (y - top) / max(1, bottom - top)
            mixed = tuple(round(a + (b - a) * share) for a, b in zip(upper, lower, strict=True))
            self.draw.line([(0, y), (self.side, y)], fill=mixed)

    def draw_oval(self, x: float, y: float, rx: float, ry: float, fill: Rgb) -> None:
        s = self.side
        self.draw.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=fill)

    def draw_wave(self, x: float, y: float, width: float, fill: Rgb) -> None:
        s = self.side
        for k in range(3):
            left = x + (k - 1.5) * width
            box = [left * s, (y - 0.012) * s, (left + width) * s, (y + 0.012) * s]
            self.draw.arc(box, 0, 180, fill=fill, width=max(1, round(0.008 * s)))

    def draw_cloud(self, x: float, y: float, size: float, fill: Rgb) -> None:
        for dx, dy, r in ((-0.9, 0.15, 0.6), (0.0, -0.15, 0.85), (0.9, 0.15, 0.65)):
            self.draw_oval(x + dx * size, y + dy * size, r * size, r * size * 0.6, fill)


def _draw_meadow(brush: _Brush, rng: random.Random) -> None:
    horizon = rng.uniform(0.42, 0.58)
    brush.fill_gradient(0, horizon, (140, 200, 240), (214, 236, 248))
    for _ in range(3):
        brush.draw_cloud(rng.random(), rng.uniform(0.06, horizon - 0.12), rng.uniform(0.05, 0.08), (246, 250, 253))
    brush.fill_gradient(horizon, 1, (150, 205, 110), (104, 172, 78))
    brush.draw_oval(rng.random(), horizon + 0.03, 0.6, 0.09, (150, 205, 110))
    for _ in range(60):
        x, y = rng.random(), rng.uniform(horizon + 0.08, 1)
        brush.draw_oval(x, y, 0.004, 0.012, (84, 148, 66))


def _draw_beach(brush: _Brush, rng: random.Random) -> None:
    sea, shore = rng.uniform(0.30, 0.38), rng.uniform(0.54, 0.62)
    brush.fill_gradient(0, sea, (126, 198, 240), (206, 234, 246))
    for _ in range(2):
        brush.draw_cloud(rng.random(), rng.uniform(0.05, sea - 0.1), rng.uniform(0.04, 0.07), (248, 250, 252))
    brush.fill_gradient(sea, shore, (40, 140, 188), (110, 200, 210))
    for _ in range(8):
        brush.draw_wave(rng.random(), rng.uniform(sea + 0.04, shore - 0.05), 0.04, (180, 226, 232))
    brush.fill_gradient(shore, 1, (240, 218, 166), (226, 194, 132))
    brush.draw_oval(rng.random(), shore, 0.7, 0.03, (244, 226, 180))
    for _ in range(50):
        brush.draw_oval(rng.random(), rng.uniform(shore + 0.05, 1), 0.005, 0.003, (200, 164, 106))


def _draw_snow(brush: _Brush, rng: random.Random) -> None:
    horizon = rng.uniform(0.48, 0.60)
    brush.fill_gradient(0, horizon, (176, 196, 216), (218, 228, 238))
    brush.fill_gradient(horizon, 1, (236, 242, 248), (250, 252, 255))
    for _ in range(3):
        brush.draw_oval(rng.random(), horizon + 0.10, rng.uniform(0.3, 0.5), 0.14, (234, 241, 248))
    for _ in range(45):
        size = rng.uniform(0.005, 0.009)
        brush.draw_oval(rng.random(), rng.random(), size, size, (255, 255, 255))
    for _ in range(14):
        brush.draw_oval(rng.random(), rng.uniform(horizon + 0.15, 1), 0.04, 0.005, (214, 226, 238))


def _draw_night(brush: _Brush, rng: random.Random) -> None:
    brush.fill_gradient(0, 1, (14, 18, 54), (52, 50, 104))
    for _ in range(70):
        size = rng.uniform(0.002, 0.006)
        brush.draw_oval(rng.random(), rng.random(), size, size, (236, 234, 214))


def _draw_wall(brush: _Brush, rng: random.Random) -> None:
    light = rng.randint(158, 186)
    brush.fill_gradient(0, 1, (light + 8, light + 8, light + 10), (light - 8, light - 8, light - 6))


def _draw_lake(brush: _Brush, rng: random.Random) -> None:
    brush.fill_gradient(0, 1, (120, 200, 222), (36, 116, 176))
    for _ in range(34):
        y = rng.random()
        brush.draw_wave(rng.random(), y, 0.03 + 0.03 * y, (196, 232, 240))


BACKGROUNDS: dict[str, Callable[[_Brush, random.Random], None]] = {
    "meadow": _draw_meadow,
    "beach": _draw_beach,
    "snow": _draw_snow,
    "night sky": _draw_night,
    "gray wall": _draw_wall,
    "lake": _draw_lake,
}


@lru_cache(maxsize=len(BACKGROUNDS) * NUM_VARIANTS * 2)
def draw_background(name: str, variant: int, size: int) -> Image.Image:
    """An RGB picture size×size. Copy before drawing on it: the same object is handed out again."""
    brush = _Brush(size * SUPERSAMPLING)
    BACKGROUNDS[name](brush, random.Random(f"{name} {variant}"))
    return brush.image.reduce(SUPERSAMPLING)
