"""Long and short words for a scene, and the judge that reads them back."""

import itertools
import random

import pytest

from lorgnette.demo.captions import Stated, caption, describe, judge, judge_description
from lorgnette.demo.scenes import Scene, Thing, random_scene

SMALL_CAR = Thing("car", "red", "small", 40, 100, 50)
BIG_TREE = Thing("tree", "green", "big", 160, 110, 89)
SCENE = Scene(SMALL_CAR, BIG_TREE, "meadow")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(7)
    return [random_scene(rng) for _ in range(3000)]


def test_the_short_caption() -> None:
    assert caption(SCENE) == "A small red car to the left of a big green tree."


def test_the_short_caption_does_not_depend_on_which_thing_is_called_first() -> None:
    assert caption(Scene(BIG_TREE, SMALL_CAR, "lake")) == caption(SCENE)
    lower = Thing("star", "pink", "small", 42, 190, 54)
    expected = "A small red car above a small pink star."
    assert caption(Scene(SMALL_CAR, lower, "lake")) == caption(Scene(lower, SMALL_CAR, "lake")) == expected


def test_all_four_relations_occur_in_short_captions(scenes: list[Scene]) -> None:
    said = [caption(scene) for scene in scenes]
    for words in ("to the left of", "to the right of", "above", "below"):
        assert sum(words in line for line in said) > 100


def test_short_captions_are_right(scenes: list[Scene]) -> None:
    assert all(judge(caption(scene), scene).right for scene in scenes)


def test_long_descriptions_state_every_fact_and_nothing_wrong(scenes: list[Scene]) -> None:
    rng = random.Random(8)
    for scene in scenes:
        text = describe(scene, rng)
        assert judge_description(text, scene).complete, text


def test_long_descriptions_are_long_and_varied(scenes: list[Scene]) -> None:
    rng = random.Random(9)
    texts = [describe(SCENE, rng) for _ in range(500)]
    lengths = [len(text.split()) for text in texts] + [len(describe(scene, rng).split()) for scene in scenes]
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
    assert judge(said, SCENE).right


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
    judged = judge(said, SCENE)
    assert (judged.objects, judged.colours, judged.relation) == (objects, colours, relation)
    assert not judged.right


def test_every_other_scene_is_judged_wrong(scenes: list[Scene]) -> None:
    """The caption of one scene is right for another only if the two agree in every fact it is judged by."""
    for one, other in itertools.pairwise(scenes):
        a, b = Stated.truth(one), Stated.truth(other)
        agree = (a.kinds, a.colours, a.relations) == (b.kinds, b.colours, b.relations)
        assert judge(caption(one), other).right == agree


def test_descriptions_are_also_judged_by_size_and_background() -> None:
    text = "A big red car is to the left of a big green tree, in a meadow."
    judged = judge_description(text, SCENE)
    assert judged.right
    assert not judged.sizes
    assert judged.background
    assert not judged.complete
    assert not judge_description(text.replace("meadow", "lake"), SCENE).background
