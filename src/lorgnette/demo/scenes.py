"""A scene: two things, where they stand, and in front of what. Its picture follows from it, pixel by pixel.

Knows nothing about words or models. Lengths are in pixels of a picture 224 wide.
"""

import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from lorgnette.demo.backgrounds import BACKGROUNDS, NUM_VARIANTS, draw_background
from lorgnette.demo.shapes import COLORS, KINDS, draw_sticker

Size = Literal["small", "big"]
Relation = Literal["left of", "right of", "above", "below"]

SIDE = 224
WIDTHS: dict[Size, tuple[int, ...]] = {"small": (50, 54, 58), "big": (84, 89, 94)}
TILTS = (-7, 0, 7)
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
OPPOSITE: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
MARGIN = 5
GAP = 7
MAX_SLANT = 0.4
"""How far off the main axis the second thing may stand, as a share of its distance along it."""


@dataclass(frozen=True, slots=True)
class Thing:
    """x, y are its centre; width is one of its size's widths; tilt in degrees."""

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
    """Two things of different kinds. variant moves clouds and waves about and is no fact a caption states."""

    first: Thing
    second: Thing
    background: str
    variant: int = 0

    @property
    def relation(self) -> Relation:
        """Where the first thing is, seen from the second."""
        across, down = self.second.x - self.first.x, self.second.y - self.first.y
        if abs(across) >= abs(down):
            return "left of" if across > 0 else "right of"
        return "above" if down > 0 else "below"


def count_scenes() -> int:
    """How many scenes differ in a fact that words can state: kinds, colours, sizes, relation, background.

    Ordered pairs of different kinds, each thing in any colour and size, any relation, any background; halved, because
    "A left of B" and "B right of A" are one scene.
    """
    pairs = len(KINDS) * (len(KINDS) - 1) * (len(COLORS) * len(WIDTHS)) ** 2
    return pairs * len(RELATIONS) * len(BACKGROUNDS) // 2


def sample_scene(rng: random.Random) -> Scene:
    """Every combination of facts is equally likely; places, widths and tilts vary within what stays unambiguous."""
    kinds = rng.sample(list(KINDS), 2)
    colours = [rng.choice(list(COLORS)) for _ in kinds]
    sizes: list[Size] = [rng.choice(list(WIDTHS)) for _ in kinds]
    widths = [rng.choice(WIDTHS[size]) for size in sizes]
    relation = rng.choice(RELATIONS)
    along, across = _sample_positions(widths if relation in ("left of", "above") else widths[::-1], rng)
    if relation in ("right of", "below"):
        along, across = along[::-1], across[::-1]
    xs, ys = (along, across) if relation in ("left of", "right of") else (across, along)
    first, second = (
        Thing(kinds[i], colours[i], sizes[i], xs[i], ys[i], widths[i], rng.choice(TILTS), rng.random() < 0.5)
        for i in (0, 1)
    )
    return Scene(first, second, rng.choice(list(BACKGROUNDS)), rng.randrange(NUM_VARIANTS))


def _sample_positions(widths: list[int], rng: random.Random) -> tuple[list[int], list[int]]:
    """Centres along the axis of the relation, in order and apart, and across it."""
    near, far = widths[0] / 2, widths[1] / 2
    slack = SIDE - 2 * MARGIN - sum(widths) - GAP
    before, between = sorted(rng.uniform(0, slack) for _ in widths)
    along = [MARGIN + near + before, MARGIN + widths[0] + GAP + far + between]
    reach = MAX_SLANT * (along[1] - along[0])
    low, high = MARGIN + far, SIDE - MARGIN - far
    start = rng.uniform(MARGIN + near, SIDE - MARGIN - near)
    start = min(max(start, low - reach), high + reach)
    end = rng.uniform(max(low, start - reach), min(high, start + reach))
    return [round(place) for place in along], [round(start), round(end)]


def draw_scene(scene: Scene, size: int = SIDE) -> Image.Image:
    """The scene's picture, RGB, size×size; the same scene always gives the same pixels."""
    picture = draw_background(scene.background, scene.variant, size).copy()
    scale = size / SIDE
    for thing in (scene.first, scene.second):
        cut = draw_sticker(thing.kind, thing.color, round(thing.width * scale), thing.tilt, thing.mirrored)
        corner = (round(thing.x * scale - cut.width / 2), round(thing.y * scale - cut.height / 2))
        picture.paste(cut, corner, mask=cut)
    return picture
