"""CIDEr-D against its definition written out, and what must hold of it."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.cider import SIGMA, cider_d

TOKENS = st.lists(st.sampled_from("abcdef"), max_size=8)
EXAMPLES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=2, max_size=5)
Examples = list[tuple[list[str], list[list[str]]]]
Gram = tuple[str, ...]


def counted(text: list[str], order: int) -> Counter[Gram]:
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


def plain(examples: Examples) -> list[float]:
    """The definition, gram by gram."""

    def weighed(text: list[str], order: int) -> dict[Gram, float]:
        known = [{g for r in references for g in counted(r, order)} for _, references in examples]
        return {
            gram: count * (math.log(len(examples)) - math.log(max(1, sum(gram in one for one in known))))
            for gram, count in counted(text, order).items()
        }

    found = []
    for text, references in examples:
        total = 0.0
        for reference in references:
            apart = max(0, len(text) - 1) - max(0, len(reference) - 1)
            for order in (1, 2, 3, 4):
                own, other = weighed(text, order), weighed(reference, order)
                dot = sum(min(value, other.get(gram, 0)) * other.get(gram, 0) for gram, value in own.items())
                norm = math.hypot(*own.values()) * math.hypot(*other.values())
                total += (dot / norm if norm else 0) * math.exp(-(apart**2) / (2 * SIGMA**2))
        found.append(10 * total / 4 / len(references))
    return found


def of(examples: Examples) -> list[float]:
    tally = cider_d([text for text, _ in examples], [references for _, references in examples])
    assert tally.value == pytest.approx(tally.per_example.mean(), abs=1e-12)
    return tally.per_example.tolist()


@given(EXAMPLES)
def test_as_defined(examples: Examples) -> None:
    assert of(examples) == pytest.approx(plain(examples), abs=1e-12)


@given(EXAMPLES)
def test_bounds_and_the_reference_itself_is_best(examples: Examples) -> None:
    single = [(text, references[:1]) for text, references in examples]
    best = of([(references[0], references) for _, references in single])
    for value, most in zip(of(single), best, strict=True):
        assert 0 <= value <= most + 1e-9
        assert most <= 10 + 1e-9


@given(EXAMPLES)
def test_words_of_other_pictures_are_worth_nothing(examples: Examples) -> None:
    assert not any(of([([token.upper() for token in text], references) for text, references in examples]))


def test_four_words_that_only_this_picture_has() -> None:
    texts = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert of([(text, [text]) for text in texts]) == pytest.approx([10, 10])


def test_one_picture_means_nothing() -> None:
    tally = cider_d([["a"]], [[["a"]]])
    assert tally.value is None
    assert tally.note is not None
    assert "several images" in tally.note


def test_one_text_for_all_pictures_says_so() -> None:
    tally = cider_d([["a"], ["b"]], [[["a"]], [["a"]]])
    assert tally.value == 0
    assert tally.note is not None
    assert cider_d([["a"], ["b"]], [[["a"]], [["b"]]]).note is None


def test_no_picture() -> None:
    assert cider_d([], []).value is None
