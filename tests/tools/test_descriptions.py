"""Long descriptions state every fact of a scene, and the check of a text finds each wrong one."""

import random
import re

import pytest
from demo_model import wording
from demo_model.descriptions import check_description, read_backgrounds, write_description

from lorgnette.demo.captions import Facts, write_caption
from lorgnette.demo.scenes import BACKGROUNDS, Scene, Thing, sample_scene
from lorgnette.demo.shapes import KINDS

SCENE = Scene(Thing("car", "red", "small", 40, 100, 50), Thing("tree", "green", "big", 160, 110, 89), "meadow")
SENTENCES = [
    *wording.OPENERS_WITH_BOTH,
    *wording.OPENERS_WITH_PLACE,
    *wording.SCENES,
    *wording.INTRODUCTIONS,
    *wording.INTRODUCTIONS_IN_PARTS,
    *wording.RELATIONS,
    *wording.PLACINGS,
    *wording.REMARKS,
    *(phrase for phrases in wording.PLACES.values() for phrase in phrases),
    *(detail for details in wording.DETAILS.values() for detail in details),
]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(7)
    return [sample_scene(rng) for _ in range(3000)]


def test_descriptions_state_every_fact_and_nothing_wrong(scenes: list[Scene]) -> None:
    rng = random.Random(8)
    for scene in scenes:
        text = write_description(scene, rng)
        assert check_description(text, scene).is_complete, text


def test_descriptions_are_long_and_varied(scenes: list[Scene]) -> None:
    rng = random.Random(9)
    texts = [write_description(SCENE, rng) for _ in range(500)]
    lengths = [len(text.split()) for text in texts] + [len(write_description(s, rng).split()) for s in scenes]
    assert min(lengths) >= 45
    assert max(lengths) <= 80
    assert len(set(texts)) > 490
    assert all(text.count(".") >= 3 for text in texts)
    assert all("{" not in text for text in texts)


def test_a_caption_is_correct_but_not_complete(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        check = check_description(write_caption(scene), scene)
        assert check.is_correct
        assert not check.is_complete  # it does not state the background
    wrong = check_description("A small green car to the right of a big red tree.", SCENE)
    assert (wrong.has_objects, wrong.has_colors, wrong.has_relation, wrong.is_correct) == (True, False, False, False)


def test_sizes_and_background_are_checked_too() -> None:
    text = "A big red car is to the left of a big green tree, in a meadow."
    check = check_description(text, SCENE)
    assert check.is_correct
    assert not check.has_sizes
    assert check.has_background
    assert not check.is_complete
    assert not check_description(text.replace("meadow", "lake"), SCENE).has_background


@pytest.mark.parametrize("sentence", SENTENCES)
def test_kinds_occur_only_in_blanks(sentence: str) -> None:
    words = set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", sentence.lower())))
    assert not words & set(KINDS)


def test_each_place_contains_its_own_keyword_and_no_other() -> None:
    assert set(wording.PLACES) == set(wording.DETAILS) == set(wording.KEYWORDS) == set(BACKGROUNDS)
    for name, phrases in wording.PLACES.items():
        for phrase in phrases:
            assert read_backgrounds(phrase) == {name}, phrase


def test_details_and_remarks_state_no_fact() -> None:
    for text in [*wording.REMARKS, *(detail for details in wording.DETAILS.values() for detail in details)]:
        facts = Facts.from_text(text)
        assert not (facts.kinds | facts.colors | facts.sizes | facts.relations | read_backgrounds(text)), text
