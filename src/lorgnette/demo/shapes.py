"""Draws one thing as a sticker: kind, color and width in pixels → a transparent image.

Knows nothing about scenes or words. Each kind is drawn in the unit square (x right, y down) from a few primitives.
Dilating the silhouette gives every kind a dark rim and a light one around it, visible on any background at 112×112.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter

Rgb = tuple[int, int, int]
Points = Sequence[tuple[float, float]]
Turn = tuple[float, float]

COLORS: dict[str, Rgb] = {
    "red": (218, 38, 44),
    "orange": (250, 140, 25),
    "yellow": (252, 218, 48),
    "green": (46, 162, 72),
    "blue": (42, 102, 220),
    "purple": (132, 62, 180),
    "pink": (250, 150, 198),
    "brown": (132, 82, 46),
    "white": (248, 248, 248),
}

INK: Rgb = (38, 34, 48)
RIM: Rgb = (255, 255, 255)
CREAM: Rgb = (248, 236, 212)
GLASS: Rgb = (204, 230, 242)
BARK: Rgb = (92, 70, 58)
LEAF: Rgb = (66, 120, 70)
CLEAR = (0, 0, 0, 0)

SUPERSAMPLING = 3
"""Stickers are drawn this many times too large and averaged down, for smooth edges."""


def _mix(color: Rgb, other: Rgb, share: float) -> Rgb:
    mixed = [round(a + (b - a) * share) for a, b in zip(color, other, strict=True)]
    return mixed[0], mixed[1], mixed[2]


class _Pen:
    """Draws in the unit square, in the thing's color, a darker shade and a lighter one."""

    def __init__(self, draw: ImageDraw.ImageDraw, color: Rgb, origin: float, scale: float) -> None:
        self.draw, self.origin, self.scale = draw, origin, scale
        self.color = color
        self.shade = _mix(color, INK, 0.28)
        self.light = _mix(color, RIM, 0.45)

    def _scale_points(self, points: Points) -> list[tuple[float, float]]:
        return [(self.origin + x * self.scale, self.origin + y * self.scale) for x, y in points]

    def draw_oval(self, x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...]) -> None:
        self.draw.ellipse(self._scale_points([(x0, y0), (x1, y1)]), fill=fill)

    def draw_box(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, *, corner: float = 0.0) -> None:
        self.draw.rounded_rectangle(self._scale_points([(x0, y0), (x1, y1)]), radius=corner * self.scale, fill=fill)

    def draw_polygon(self, points: Points, fill: Rgb) -> None:
        self.draw.polygon(self._scale_points(points), fill=fill)

    def draw_line(self, points: Points, fill: Rgb, width: float) -> None:
        self.draw.line(self._scale_points(points), fill=fill, width=max(1, round(width * self.scale)), joint="curve")

    def draw_arc(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb, *, turn: Turn, width: float) -> None:
        """Draw part of an oval's edge; turn: start and end in degrees, clockwise from the right."""
        box = self._scale_points([(x0, y0), (x1, y1)])
        self.draw.arc(box, *turn, fill=fill, width=max(1, round(width * self.scale)))

    def draw_dome(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        """Draw the upper half of an oval."""
        self.draw.pieslice(self._scale_points([(x0, y0), (x1, y1)]), 180, 360, fill=fill)


def _draw_ball(pen: _Pen) -> None:
    pen.draw_oval(0.04, 0.04, 0.96, 0.96, pen.color)
    pen.draw_arc(0.30, 0.04, 0.70, 0.96, pen.shade, turn=(0, 360), width=0.035)
    pen.draw_arc(0.04, 0.34, 0.96, 0.66, pen.shade, turn=(0, 180), width=0.035)
    pen.draw_oval(0.20, 0.14, 0.38, 0.30, pen.light)


def _draw_star(pen: _Pen) -> None:
    turns = [(math.pi * k / 5, 0.52 if k % 2 == 0 else 0.235) for k in range(10)]
    pen.draw_polygon([(0.5 + r * math.sin(a), 0.54 - r * math.cos(a)) for a, r in turns], pen.color)
    pen.draw_polygon([(0.5 + 0.5 * r * math.sin(a), 0.54 - 0.5 * r * math.cos(a)) for a, r in turns], pen.light)


def _draw_heart(pen: _Pen) -> None:
    angles = [2 * math.pi * k / 60 for k in range(60)]
    across = [16 * math.sin(a) ** 3 for a in angles]
    up = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    pen.draw_polygon([(0.5 + x / 34, 0.45 - y / 33) for x, y in zip(across, up, strict=True)], pen.color)
    pen.draw_oval(0.17, 0.18, 0.34, 0.34, pen.light)


def _draw_house(pen: _Pen) -> None:
    pen.draw_box(0.70, 0.10, 0.82, 0.40, pen.shade)
    pen.draw_box(0.14, 0.42, 0.86, 0.97, pen.color)
    pen.draw_polygon([(0.02, 0.48), (0.50, 0.03), (0.98, 0.48)], pen.shade)
    pen.draw_box(0.24, 0.62, 0.44, 0.97, CREAM)
    pen.draw_box(0.56, 0.58, 0.76, 0.76, GLASS)
    pen.draw_line([(0.66, 0.58), (0.66, 0.76)], INK, 0.03)


def _draw_tree(pen: _Pen) -> None:
    pen.draw_box(0.42, 0.62, 0.58, 0.99, BARK)
    pen.draw_oval(0.06, 0.28, 0.56, 0.76, pen.color)
    pen.draw_oval(0.44, 0.28, 0.94, 0.76, pen.color)
    pen.draw_oval(0.20, 0.02, 0.80, 0.60, pen.color)
    for x, y in ((0.34, 0.24), (0.60, 0.34), (0.26, 0.54), (0.72, 0.56)):
        pen.draw_arc(x - 0.08, y - 0.08, x + 0.08, y + 0.08, pen.shade, turn=(20, 160), width=0.03)


def _draw_car(pen: _Pen) -> None:
    pen.draw_polygon([(0.20, 0.50), (0.34, 0.22), (0.70, 0.22), (0.84, 0.50)], pen.color)
    pen.draw_box(0.01, 0.46, 0.99, 0.76, pen.color, corner=0.10)
    pen.draw_polygon([(0.30, 0.47), (0.39, 0.29), (0.50, 0.29), (0.50, 0.47)], GLASS)
    pen.draw_polygon([(0.55, 0.47), (0.55, 0.29), (0.66, 0.29), (0.74, 0.47)], GLASS)
    for x in (0.26, 0.74):
        pen.draw_oval(x - 0.13, 0.62, x + 0.13, 0.88, INK)
        pen.draw_oval(x - 0.05, 0.70, x + 0.05, 0.80, CREAM)


def _draw_boat(pen: _Pen) -> None:
    pen.draw_line([(0.50, 0.04), (0.50, 0.72)], BARK, 0.05)
    pen.draw_polygon([(0.54, 0.04), (0.54, 0.62), (0.94, 0.62)], pen.color)
    pen.draw_polygon([(0.46, 0.14), (0.46, 0.62), (0.14, 0.62)], pen.light)
    pen.draw_polygon([(0.02, 0.68), (0.98, 0.68), (0.80, 0.95), (0.20, 0.95)], pen.color)
    pen.draw_line([(0.06, 0.75), (0.94, 0.75)], pen.shade, 0.05)


def _draw_fish(pen: _Pen) -> None:
    pen.draw_polygon([(0.02, 0.24), (0.34, 0.50), (0.02, 0.78)], pen.shade)
    pen.draw_polygon([(0.38, 0.34), (0.56, 0.10), (0.72, 0.34)], pen.shade)
    pen.draw_oval(0.18, 0.24, 0.98, 0.78, pen.color)
    pen.draw_arc(0.38, 0.30, 0.64, 0.72, pen.shade, turn=(290, 70), width=0.04)
    pen.draw_oval(0.76, 0.36, 0.88, 0.48, RIM)
    pen.draw_oval(0.80, 0.39, 0.86, 0.45, INK)


def _draw_cup(pen: _Pen) -> None:
    pen.draw_arc(0.58, 0.30, 0.98, 0.74, pen.color, turn=(0, 360), width=0.10)
    pen.draw_polygon([(0.06, 0.18), (0.78, 0.18), (0.70, 0.92), (0.14, 0.92)], pen.color)
    pen.draw_oval(0.14, 0.86, 0.70, 0.98, pen.color)
    pen.draw_oval(0.06, 0.08, 0.78, 0.28, pen.shade)
    pen.draw_oval(0.14, 0.13, 0.70, 0.25, CREAM)


def _draw_flower(pen: _Pen) -> None:
    pen.draw_line([(0.50, 0.50), (0.50, 0.98)], LEAF, 0.07)
    pen.draw_oval(0.50, 0.74, 0.78, 0.88, LEAF)
    for k in range(6):
        x, y = 0.50 + 0.23 * math.sin(math.pi * k / 3), 0.36 - 0.23 * math.cos(math.pi * k / 3)
        pen.draw_oval(x - 0.15, y - 0.15, x + 0.15, y + 0.15, pen.color)
    pen.draw_oval(0.38, 0.24, 0.62, 0.48, BARK)


def _draw_balloon(pen: _Pen) -> None:
    pen.draw_line([(0.50, 0.72), (0.44, 0.82), (0.55, 0.90), (0.49, 0.99)], INK, 0.035)
    pen.draw_polygon([(0.50, 0.66), (0.41, 0.78), (0.59, 0.78)], pen.shade)
    pen.draw_oval(0.18, 0.01, 0.82, 0.73, pen.color)
    pen.draw_oval(0.29, 0.11, 0.43, 0.31, pen.light)


def _draw_mushroom(pen: _Pen) -> None:
    pen.draw_box(0.36, 0.50, 0.64, 0.96, CREAM, corner=0.08)
    pen.draw_dome(0.03, 0.04, 0.97, 1.06, pen.color)
    pen.draw_box(0.03, 0.50, 0.97, 0.60, pen.color, corner=0.05)
    for x, y, r in ((0.50, 0.20, 0.09), (0.24, 0.40, 0.08), (0.76, 0.40, 0.08)):
        pen.draw_oval(x - r, y - r, x + r, y + r, CREAM if pen.color != COLORS["white"] else pen.shade)


def _draw_umbrella(pen: _Pen) -> None:
    pen.draw_dome(0.01, 0.06, 0.99, 1.04, pen.color)
    for x in (0.01, 0.3367, 0.6634):
        pen.draw_oval(x, 0.47, x + 0.3267, 0.63, CLEAR)
    pen.draw_line([(0.50, 0.08), (0.34, 0.52)], pen.shade, 0.03)
    pen.draw_line([(0.50, 0.08), (0.66, 0.52)], pen.shade, 0.03)
    pen.draw_line([(0.50, 0.01), (0.50, 0.88)], INK, 0.05)
    pen.draw_arc(0.50, 0.78, 0.72, 0.99, INK, turn=(0, 180), width=0.05)


def _draw_kite(pen: _Pen) -> None:
    pen.draw_line([(0.50, 0.66), (0.40, 0.78), (0.56, 0.87), (0.44, 0.99)], INK, 0.035)
    pen.draw_polygon([(0.50, 0.01), (0.88, 0.30), (0.50, 0.72), (0.12, 0.30)], pen.color)
    pen.draw_polygon([(0.50, 0.01), (0.88, 0.30), (0.50, 0.30)], pen.light)
    pen.draw_polygon([(0.50, 0.72), (0.12, 0.30), (0.50, 0.30)], pen.shade)
    for x, y in ((0.42, 0.80), (0.53, 0.90)):
        pen.draw_polygon(
            [(x - 0.11, y - 0.05), (x + 0.11, y + 0.05), (x + 0.11, y - 0.05), (x - 0.11, y + 0.05)], pen.shade
        )


def _draw_rocket(pen: _Pen) -> None:
    pen.draw_polygon([(0.40, 0.78), (0.50, 0.99), (0.60, 0.78)], CREAM)
    pen.draw_polygon([(0.34, 0.50), (0.12, 0.86), (0.36, 0.80)], pen.shade)
    pen.draw_polygon([(0.66, 0.50), (0.88, 0.86), (0.64, 0.80)], pen.shade)
    pen.draw_oval(0.29, 0.14, 0.71, 0.98, pen.color)
    pen.draw_polygon([(0.50, 0.00), (0.31, 0.40), (0.69, 0.40)], pen.color)
    pen.draw_box(0.36, 0.80, 0.64, 0.99, CREAM)
    pen.draw_box(0.33, 0.76, 0.67, 0.84, pen.shade)
    pen.draw_oval(0.40, 0.34, 0.60, 0.54, GLASS)


def _draw_butterfly(pen: _Pen) -> None:
    pen.draw_oval(0.00, 0.10, 0.50, 0.58, pen.color)
    pen.draw_oval(0.50, 0.10, 1.00, 0.58, pen.color)
    pen.draw_oval(0.10, 0.48, 0.50, 0.92, pen.color)
    pen.draw_oval(0.50, 0.48, 0.90, 0.92, pen.color)
    for x, y in ((0.21, 0.33), (0.79, 0.33), (0.27, 0.70), (0.73, 0.70)):
        pen.draw_oval(x - 0.08, y - 0.08, x + 0.08, y + 0.08, pen.light if pen.color != COLORS["white"] else pen.shade)
    pen.draw_line([(0.36, 0.04), (0.50, 0.26), (0.64, 0.04)], INK, 0.035)
    pen.draw_oval(0.44, 0.20, 0.56, 0.86, INK)


KINDS: dict[str, Callable[[_Pen], None]] = {
    "ball": _draw_ball,
    "star": _draw_star,
    "heart": _draw_heart,
    "house": _draw_house,
    "tree": _draw_tree,
    "car": _draw_car,
    "boat": _draw_boat,
    "fish": _draw_fish,
    "cup": _draw_cup,
    "flower": _draw_flower,
    "balloon": _draw_balloon,
    "mushroom": _draw_mushroom,
    "umbrella": _draw_umbrella,
    "kite": _draw_kite,
    "rocket": _draw_rocket,
    "butterfly": _draw_butterfly,
}


@lru_cache(maxsize=6000)
def draw_sticker(kind: str, color: str, width: int, tilt: int = 0, mirrored: bool = False) -> Image.Image:
    """Return a square RGBA image, `width` pixels with its rims; tilt: degrees.

    It is cached, since a million images use a few thousand stickers: do not draw on it.
    """
    side = width * SUPERSAMPLING
    rims = side * 0.045
    canvas = Image.new("RGBA", (side, side), CLEAR)
    KINDS[kind](_Pen(ImageDraw.Draw(canvas), COLORS[color], rims, side - 2 * rims))
    if mirrored:
        canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if tilt:
        canvas = canvas.rotate(tilt, Image.Resampling.BILINEAR)
    inside = canvas.getchannel("A").point(_ABOVE_HALF)
    rim = _dilate(inside, rims * 0.55)
    sticker = Image.new("RGB", (side, side), RIM)
    sticker.paste(INK, mask=rim)
    sticker.paste(canvas.convert("RGB"), mask=inside)
    sticker.putalpha(_dilate(rim, rims * 0.40))
    return sticker.reduce(SUPERSAMPLING)


_ABOVE_HALF = [0] * 128 + [255] * 128
_ABOVE_TENTH = [0] * 24 + [255] * 232


def _dilate(mask: Image.Image, pixels: float) -> Image.Image:
    """Grow the mask by about `pixels` on all sides: blur it, then keep every pixel above a low threshold."""
    return mask.filter(ImageFilter.GaussianBlur(pixels * 0.75)).point(_ABOVE_TENTH)
