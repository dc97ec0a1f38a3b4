"""The sentences keep the promises that the reader of facts relies on."""

import re

import pytest

from lorgnette.demo import wording
from lorgnette.demo.backgrounds import BACKGROUNDS
from lorgnette.demo.captions import Facts
from lorgnette.demo.shapes import KINDS

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


@pytest.mark.parametrize("sentence", SENTENCES)
def test_no_sentence_names_a_kind_but_in_a_blank(sentence: str) -> None:
    words = set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", sentence.lower())))
    assert not words & set(KINDS)


def test_each_place_holds_its_own_key_word_and_no_other() -> None:
    assert set(wording.PLACES) == set(wording.DETAILS) == set(wording.KEY_WORDS) == set(BACKGROUNDS)
    for name, phrases in wording.PLACES.items():
        for phrase in phrases:
            assert Facts.from_text(phrase).backgrounds == {name}, phrase


def test_details_and_remarks_state_no_fact() -> None:
    for line in [*wording.REMARKS, *(detail for details in wording.DETAILS.values() for detail in details)]:
        said = Facts.from_text(line)
        assert not (said.kinds | said.colors | said.sizes | said.relations | said.backgrounds), line
