"""Captions state the scene's facts, and the facts of a text are read back whatever its wording."""

import itertools
import random

import pytest

from lorgnette.demo.captions import Facts, write_caption
from lorgnette.demo.scenes import Scene, Thing, sample_scene

SMALL_CAR = Thing("car", "red", "small", 40, 100, 50)
BIG_TREE = Thing("tree", "green", "big", 160, 110, 89)
SCENE = Scene(SMALL_CAR, BIG_TREE, "meadow")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(7)
    return [sample_scene(rng) for _ in range(3000)]


def compare_facts(text: str, scene: Scene) -> tuple[bool, bool, bool]:
    """Whether objects, colors and relation of the text are exactly the scene's."""
    stated, actual = Facts.from_text(text), Facts.from_scene(scene)
    return stated.kinds == actual.kinds, stated.colors == actual.colors, stated.relations == actual.relations


def test_the_short_caption() -> None:
    assert write_caption(SCENE) == "A small red car to the left of a big green tree."


def test_the_caption_does_not_depend_on_the_order_of_the_things() -> None:
    assert write_caption(Scene(BIG_TREE, SMALL_CAR, "lake")) == write_caption(SCENE)
    lower = Thing("star", "pink", "small", 42, 190, 54)
    expected = "A small red car above a small pink star."
    assert write_caption(Scene(SMALL_CAR, lower, "lake")) == write_caption(Scene(lower, SMALL_CAR, "lake")) == expected


def test_all_four_relations_occur(scenes: list[Scene]) -> None:
    captions = [write_caption(scene) for scene in scenes]
    for phrase in ("to the left of", "to the right of", "above", "below"):
        assert sum(phrase in caption for caption in captions) > 100


def test_captions_state_the_scenes_facts(scenes: list[Scene]) -> None:
    assert all(all(compare_facts(write_caption(scene), scene)) for scene in scenes)


@pytest.mark.parametrize(
    "text",
    [
        "A small red car to the left of a big green tree.",
        "a big green tree to the right of a small red car",
        "A red car left of a green tree",
        "There is a red car. There is a green tree. The tree is to the right of the car.",
        "To the left of the green tree there is a red car.",
        "The car is red and the tree is green; the car is to the left of the tree.",
    ],
)
def test_equivalent_statements_are_correct(text: str) -> None:
    assert all(compare_facts(text, SCENE))


@pytest.mark.parametrize(
    ("text", "has_objects", "has_colors", "has_relation"),
    [
        ("A small red car to the right of a big green tree.", True, True, False),
        ("A small green car to the left of a big red tree.", True, False, True),
        ("A small red boat to the left of a big green tree.", False, False, False),
        ("A small red car above a big green tree.", True, True, False),
        ("A small car to the left of a big tree.", True, False, True),
        ("A small red car and a big green tree.", True, True, False),
        ("A big green tree to the left of a small red car.", True, True, False),
        ("A small red car.", False, False, False),
        ("A red car to the left of a green tree, above a blue ball.", False, False, False),
        ("A red car to the left of a green tree. The car is to the right of the tree.", True, True, False),
        ("", False, False, False),
    ],
)
def test_wrong_statements_are_detected(text: str, has_objects: bool, has_colors: bool, has_relation: bool) -> None:
    assert compare_facts(text, SCENE) == (has_objects, has_colors, has_relation)


def test_a_caption_is_wrong_for_every_other_scene(scenes: list[Scene]) -> None:
    """The caption of one scene is correct for another only if the two agree in every fact of a caption."""
    for scene, other in itertools.pairwise(scenes):
        a, b = Facts.from_scene(scene), Facts.from_scene(other)
        is_equal = (a.kinds, a.colors, a.relations) == (b.kinds, b.colors, b.relations)
        assert all(compare_facts(write_caption(scene), other)) == is_equal
