"""Long and short words for a scene, and the judge that reads them back."""

import itertools
import random

import pytest

from lorgnette.demo.captions import Facts, check_caption, check_description, write_caption, write_description
from lorgnette.demo.scenes import Scene, Thing, sample_scene

SMALL_CAR = Thing("car", "red", "small", 40, 100, 50)
BIG_TREE = Thing("tree", "green", "big", 160, 110, 89)
SCENE = Scene(SMALL_CAR, BIG_TREE, "meadow")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(7)
    return [sample_scene(rng) for _ in range(3000)]


def test_the_short_caption() -> None:
    assert write_caption(SCENE) == "A small red car to the left of a big green tree."


def test_the_short_caption_does_not_depend_on_which_thing_is_called_first() -> None:
    assert write_caption(Scene(BIG_TREE, SMALL_CAR, "lake")) == write_caption(SCENE)
    lower = Thing("star", "pink", "small", 42, 190, 54)
    expected = "A small red car above a small pink star."
    assert write_caption(Scene(SMALL_CAR, lower, "lake")) == write_caption(Scene(lower, SMALL_CAR, "lake")) == expected


def test_all_four_relations_occur_in_short_captions(scenes: list[Scene]) -> None:
    said = [write_caption(scene) for scene in scenes]
    for words in ("to the left of", "to the right of", "above", "below"):
        assert sum(words in line for line in said) > 100


def test_short_captions_are_right(scenes: list[Scene]) -> None:
    assert all(check_caption(write_caption(scene), scene).is_correct for scene in scenes)


def test_long_descriptions_state_every_fact_and_nothing_wrong(scenes: list[Scene]) -> None:
    rng = random.Random(8)
    for scene in scenes:
        text = write_description(scene, rng)
        assert check_description(text, scene).is_complete, text


def test_long_descriptions_are_long_and_varied(scenes: list[Scene]) -> None:
    rng = random.Random(9)
    texts = [write_description(SCENE, rng) for _ in range(500)]
    lengths = [len(text.split()) for text in texts] + [len(write_description(scene, rng).split()) for scene in scenes]
    assert min(lengths) >= 45
    assert max(lengths) <= 80
    assert len(set(texts)) > 490
    assert all(text.count(".") >= 3 for text in texts)
    assert all("{" not in text for text in texts)


@pytest.mark.parametrize(
    "said",
    [
        "A small red car to the left of a big green tree.",
        "a big green tree to the right of a small red car",
        "A red car left of a green tree",
        "There is a red car. There is a green tree. The tree is to the right of the car.",
        "To the left of the green tree there is a red car.",
        "The car is red and the tree is green; the car is to the left of the tree.",
    ],
)
def test_equivalent_statements_are_right(said: str) -> None:
    assert check_caption(said, SCENE).is_correct


@pytest.mark.parametrize(
    ("said", "objects", "colours", "relation"),
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
def test_wrong_statements_are_found_out(said: str, objects: bool, colours: bool, relation: bool) -> None:
    judged = check_caption(said, SCENE)
    assert (judged.has_objects, judged.has_colors, judged.has_relation) == (objects, colours, relation)
    assert not judged.is_correct


def test_every_other_scene_is_judged_wrong(scenes: list[Scene]) -> None:
    """The caption of one scene is right for another only if the two agree in every fact it is judged by."""
    for one, other in itertools.pairwise(scenes):
        a, b = Facts.from_scene(one), Facts.from_scene(other)
        agree = (a.kinds, a.colors, a.relations) == (b.kinds, b.colors, b.relations)
        assert check_caption(write_caption(one), other).is_correct == agree


def test_descriptions_are_also_judged_by_size_and_background() -> None:
    text = "A big red car is to the left of a big green tree, in a meadow."
    judged = check_description(text, SCENE)
    assert judged.is_correct
    assert not judged.has_sizes
    assert judged.has_background
    assert not judged.is_complete
    assert not check_description(text.replace("meadow", "lake"), SCENE).has_background
