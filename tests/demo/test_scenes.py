"""Scenes: unambiguous, inside the picture, apart, all combinations, the same pixels each time."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lorgnette.demo.backgrounds import BACKGROUNDS
from lorgnette.demo.scenes import (
    OPPOSITE,
    RELATIONS,
    SIDE,
    WIDTHS,
    Scene,
    Thing,
    count_scenes,
    draw_scene,
    sample_scene,
)
from lorgnette.demo.shapes import COLORS, KINDS


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(11)
    return [sample_scene(rng) for _ in range(4000)]


def test_things_stand_inside_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing in (scene.first, scene.second):
            half = thing.width / 2
            assert half <= thing.x <= SIDE - half
            assert half <= thing.y <= SIDE - half
        reach = (scene.first.width + scene.second.width) / 2
        across, down = abs(scene.first.x - scene.second.x), abs(scene.first.y - scene.second.y)
        assert max(across, down) >= reach + 5


def test_the_relation_is_unambiguous(scenes: list[Scene]) -> None:
    for scene in scenes:
        short, long = sorted([abs(scene.first.x - scene.second.x), abs(scene.first.y - scene.second.y)])
        assert short <= 0.4 * long + 2


def test_the_relation_is_seen_from_the_second_thing() -> None:
    left, right = Thing("car", "red", "small", 40, 100, 50), Thing("tree", "green", "big", 160, 110, 89)
    assert Scene(left, right, "lake").relation == "left of"
    assert Scene(right, left, "lake").relation == "right of"
    upper = replace(right, x=45, y=10)
    assert Scene(upper, left, "lake").relation == "above"
    assert Scene(left, upper, "lake").relation == "below"
    assert all(OPPOSITE[OPPOSITE[relation]] == relation for relation in RELATIONS)


def test_every_fact_is_drawn_about_equally_often(scenes: list[Scene]) -> None:
    for wanted, drawn in (
        (KINDS, [scene.first.kind for scene in scenes] + [scene.second.kind for scene in scenes]),
        (COLORS, [scene.first.color for scene in scenes] + [scene.second.color for scene in scenes]),
        (WIDTHS, [scene.first.size for scene in scenes]),
        (RELATIONS, [scene.relation for scene in scenes]),
        (BACKGROUNDS, [scene.background for scene in scenes]),
    ):
        counts = Counter(drawn)
        assert set(counts) == set(wanted)
        assert max(counts.values()) < 1.4 * min(counts.values())


def test_the_two_things_are_of_different_kinds_and_may_share_a_colour(scenes: list[Scene]) -> None:
    assert all(scene.first.kind != scene.second.kind for scene in scenes)
    assert any(scene.first.color == scene.second.color for scene in scenes)


def test_sizes_are_told_apart_by_width() -> None:
    assert max(WIDTHS["small"]) * 1.4 < min(WIDTHS["big"])


def test_count_of_scenes_by_listing_a_smaller_world() -> None:
    """The formula, against a count of distinct facts drawn from few kinds and colours."""
    facts = set()
    kinds, colours = list(KINDS)[:3], list(COLORS)[:2]
    for one in ((k, c, s) for k in kinds for c in colours for s in WIDTHS):
        for other in ((k, c, s) for k in kinds for c in colours for s in WIDTHS):
            if one[0] != other[0]:
                facts |= {min((one, relation, other), (other, OPPOSITE[relation], one)) for relation in RELATIONS}
    per_background = 3 * 2 * (2 * 2) ** 2 * 4 // 2
    assert len(facts) == per_background
    assert count_scenes() == 16 * 15 * (9 * 2) ** 2 * 4 // 2 * 6 == 933_120


def test_a_scene_always_has_the_same_pixels() -> None:
    assert sample_scene(random.Random(3)) == sample_scene(random.Random(3))
    scene = sample_scene(random.Random(3))
    first = draw_scene(scene)
    assert first.size == (SIDE, SIDE)
    assert first.mode == "RGB"
    assert first.tobytes() == draw_scene(scene).tobytes()
    assert draw_scene(scene, 96).size == (96, 96)


def test_each_thing_is_drawn_where_the_scene_says() -> None:
    car = Thing("ball", "red", "big", 60, 60, 89)
    with_star = draw_scene(Scene(car, Thing("star", "blue", "small", 170, 70, 50), "gray wall"))
    pixels = np.asarray(with_star)
    red, blue = pixels[60, 60].astype(int), pixels[70, 170].astype(int)
    assert red[0] > red[2] + 100
    assert blue[2] > blue[0] + 50
