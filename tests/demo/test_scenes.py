"""Scenes are unambiguous, inside the image, apart, and always have the same pixels."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lorgnette.demo.scenes import (
    BACKGROUNDS,
    NUM_VARIANTS,
    OPPOSITE,
    RELATIONS,
    SIDE,
    WIDTHS,
    Scene,
    Thing,
    compute_boxes,
    draw_background,
    draw_scene,
    sample_scene,
)
from lorgnette.demo.shapes import COLORS, KINDS


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(11)
    return [sample_scene(rng) for _ in range(4000)]


def test_things_are_inside_the_image_and_apart(scenes: list[Scene]) -> None:
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


def test_the_relation_is_relative_to_the_second_thing() -> None:
    left, right = Thing("car", "red", "small", 40, 100, 50), Thing("tree", "green", "big", 160, 110, 89)
    assert Scene(left, right, "lake").relation == "left of"
    assert Scene(right, left, "lake").relation == "right of"
    upper = replace(right, x=45, y=10)
    assert Scene(upper, left, "lake").relation == "above"
    assert Scene(left, upper, "lake").relation == "below"
    assert all(OPPOSITE[OPPOSITE[relation]] == relation for relation in RELATIONS)


def test_every_fact_is_about_equally_frequent(scenes: list[Scene]) -> None:
    for expected, sampled in (
        (KINDS, [scene.first.kind for scene in scenes] + [scene.second.kind for scene in scenes]),
        (COLORS, [scene.first.color for scene in scenes] + [scene.second.color for scene in scenes]),
        (WIDTHS, [scene.first.size for scene in scenes]),
        (RELATIONS, [scene.relation for scene in scenes]),
        (BACKGROUNDS, [scene.background for scene in scenes]),
    ):
        counts = Counter(sampled)
        assert set(counts) == set(expected)
        assert max(counts.values()) < 1.4 * min(counts.values())


def test_the_two_things_are_of_different_kinds_and_may_share_a_color(scenes: list[Scene]) -> None:
    assert all(scene.first.kind != scene.second.kind for scene in scenes)
    assert any(scene.first.color == scene.second.color for scene in scenes)


def test_sizes_differ_in_width() -> None:
    assert max(WIDTHS["small"]) * 1.4 < min(WIDTHS["big"])


def test_count_of_scenes_against_a_list_of_few() -> None:
    """The formula, against a count of distinct facts drawn from few kinds and colors.

    Ordered pairs of different kinds × color and size of each × relations × backgrounds, halved: "A left of B" and
    "B right of A" are one scene.
    """
    facts = set()
    kinds, colors = list(KINDS)[:3], list(COLORS)[:2]
    for a in itertools.product(kinds, colors, WIDTHS):
        for b in itertools.product(kinds, colors, WIDTHS):
            if a[0] != b[0]:
                facts |= {min((a, relation, b), (b, OPPOSITE[relation], a)) for relation in RELATIONS}
    per_background = 3 * 2 * (2 * 2) ** 2 * 4 // 2
    assert len(facts) == per_background
    num_pairs = len(KINDS) * (len(KINDS) - 1) * (len(COLORS) * len(WIDTHS)) ** 2
    assert num_pairs * len(RELATIONS) // 2 * len(BACKGROUNDS) == 16 * 15 * (9 * 2) ** 2 * 4 // 2 * 6 == 933_120


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


def test_a_background_is_an_image_of_the_given_size() -> None:
    for name in BACKGROUNDS:
        assert draw_background(name, 0, 64).size == (64, 64)
        assert draw_background(name, 0, 64).mode == "RGB"


def test_variants_of_a_background_differ_and_are_deterministic() -> None:
    for name in BACKGROUNDS:
        first = draw_background.__wrapped__(name, 0, 64)
        assert first.tobytes() == draw_background.__wrapped__(name, 0, 64).tobytes()
        assert first.tobytes() != draw_background(name, 1, 64).tobytes()


def test_two_backgrounds_differ_more_than_variants_of_one() -> None:
    columns = {
        name: [np.asarray(draw_background(name, v, 32)).mean(axis=1) for v in range(NUM_VARIANTS)]
        for name in BACKGROUNDS
    }
    for first, second in itertools.combinations(BACKGROUNDS, 2):
        distance = min(np.abs(a - b).mean() for a in columns[first] for b in columns[second])
        assert distance > 8, (first, second)


@pytest.mark.parametrize("size", [SIDE, 448])
def test_boxes_are_around_what_is_drawn(scenes: list[Scene], size: int) -> None:
    for scene in scenes[:20]:
        background = np.asarray(draw_background(scene.background, scene.variant, size)).astype(int)
        changed = (np.asarray(draw_scene(scene, size)) != background).any(2)
        for left, top, right, bottom in compute_boxes(scene, size):
            # Nearly transparent edges may leave a pixel as it is.
            inside = np.argwhere(changed[top:bottom, left:right])
            assert inside.min(0).max() <= 1
            assert (inside.max(0) >= np.array([bottom - top, right - left]) - 2).all()
            changed[top:bottom, left:right] = False
        assert not changed.any()
