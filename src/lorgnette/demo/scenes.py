"""A scene: two things, their positions, and a background. It determines its image pixel by pixel.

Knows nothing about words or models. Lengths are in pixels of an image 224 wide.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw

from lorgnette.demo.shapes import COLORS, KINDS, Rgb, draw_sticker

Size = Literal["small", "big"]
Relation = Literal["left of", "right of", "above", "below"]

SIDE = 224
WIDTHS: dict[Size, tuple[int, ...]] = {"small": (50, 54, 58), "big": (84, 89, 94)}
TILTS = (-7, 0, 7)
OPPOSITE: dict[Relation, Relation] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
MARGIN = 5
GAP = 7
MAX_SLANT = 0.4
"""Largest distance of the second thing from the main axis, as a share of its distance along the axis."""
NUM_VARIANTS = 8
SUPERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Thing:
    """x, y: its center; width: one of its size's widths; tilt: degrees."""

    kind: str
    color: str
    size: Size
    x: int
    y: int
    width: int
    tilt: int = 0
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Two things of different kinds. variant moves clouds and waves about; no caption states it."""

    first: Thing
    second: Thing
    background: str
    variant: int = 0

    @property
    def relation(self) -> Relation:
        """The position of the first thing relative to the second."""
        across, down = self.second.x - self.first.x, self.second.y - self.first.y
        if abs(across) >= abs(down):
            return "left of" if across > 0 else "right of"
        return "above" if down > 0 else "below"


def sample_scene(rng: random.Random) -> Scene:
    """Sample a scene. All combinations of facts are equally likely, and the relation is always unambiguous."""
    kinds = rng.sample(list(KINDS), 2)
    colors = [rng.choice(list(COLORS)) for _ in kinds]
    sizes: list[Size] = [rng.choice(list(WIDTHS)) for _ in kinds]
    widths = [rng.choice(WIDTHS[size]) for size in sizes]
    relation = rng.choice(RELATIONS)
    along, across = _sample_positions(widths if relation in ("left of", "above") else widths[::-1], rng)
    if relation in ("right of", "below"):
        along, across = along[::-1], across[::-1]
    xs, ys = (along, across) if relation in ("left of", "right of") else (across, along)
    first, second = (
        Thing(kinds[i], colors[i], sizes[i], xs[i], ys[i], widths[i], rng.choice(TILTS), rng.random() < 0.5)
        for i in (0, 1)
    )
    return Scene(first, second, rng.choice(list(BACKGROUNDS)), rng.randrange(NUM_VARIANTS))


def _sample_positions(widths: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """Sample two centers along the axis of the relation, in order and apart, and across it."""
    near, far = widths[0] / 2, widths[1] / 2
    slack = SIDE - 2 * MARGIN - sum(widths) - GAP
    before, between = sorted(rng.uniform(0, slack) for _ in widths)
    along = [MARGIN + near + before, MARGIN + widths[0] + GAP + far + between]
    reach = MAX_SLANT * (along[1] - along[0])
    low, high = MARGIN + far, SIDE - MARGIN - far
    start = rng.uniform(MARGIN + near, SIDE - MARGIN - near)
    start = min(max(start, low - reach), high + reach)
    end = rng.uniform(max(low, start - reach), min(high, start + reach))
    return [round(center) for center in along], [round(start), round(end)]


def draw_scene(scene: Scene, size: int = SIDE) -> Image.Image:
    """Draw the scene as an RGB image of size×size pixels. Deterministic."""
    image = draw_background(scene.background, scene.variant, size).copy()
    for thing in (scene.first, scene.second):
        sticker, corner = _place_sticker(thing, size)
        image.paste(sticker, corner, mask=sticker)
    return image


def compute_boxes(scene: Scene, size: int = SIDE) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """The boxes around the first and the second thing: left, top, right, bottom in pixels of `draw_scene`'s image."""

    def compute_box(thing: Thing) -> tuple[int, int, int, int]:
        sticker, (x, y) = _place_sticker(thing, size)
        left, top, right, bottom = sticker.getchannel("A").getbbox() or (0, 0, 0, 0)
        return x + left, y + top, x + right, y + bottom

    return compute_box(scene.first), compute_box(scene.second)


def _place_sticker(thing: Thing, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """The thing's image, and the place of its upper left corner."""
    scale = size / SIDE
    sticker = draw_sticker(thing.kind, thing.color, round(thing.width * scale), thing.tilt, thing.mirrored)
    return sticker, (round(thing.x * scale - sticker.width / 2), round(thing.y * scale - sticker.height / 2))


class _Brush:
    """Draws in the unit square over the whole image."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self.draw = ImageDraw.Draw(self.image)

    def fill_gradient(self, y0: float, y1: float, upper: Rgb, lower: Rgb) -> None:
        """Fill the full width between two heights with a vertical gradient."""
        top, bottom = round(y0 * self.side), round(y1 * self.side)
        for y in range(top, bottom):
            share = (y - top) / max(1, bottom - top)
            color = tuple(round(a + (b - a) * share) for a, b in zip(upper, lower, strict=True))
            self.draw.line([(0, y), (self.side, y)], fill=color)

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
    """Return an RGB image of size×size. It is cached: copy it before drawing on it."""
    brush = _Brush(size * SUPERSAMPLING)
    BACKGROUNDS[name](brush, random.Random(f"{name} {variant}"))
    return brush.image.reduce(SUPERSAMPLING)
