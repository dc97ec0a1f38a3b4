"""CIDEr-D compared with a direct implementation of its definition, and its properties."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.cider import SIGMA, cider_d

TOKENS = st.lists(st.sampled_from("abcdef"), max_size=8)
EXAMPLES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=2, max_size=5)
Examples = list[tuple[list[str], list[list[str]]]]
NGram = tuple[str, ...]


def count_ngrams(text: list[str], order: int) -> Counter[NGram]:
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


def cider_by_definition(examples: Examples) -> list[float]:
    """The definition, n-gram by n-gram."""

    def compute_weights(text: list[str], order: int) -> dict[NGram, float]:
        image_ngrams = [{g for r in references for g in count_ngrams(r, order)} for _, references in examples]
        return {
            gram: count * (math.log(len(examples)) - math.log(max(1, sum(gram in ngrams for ngrams in image_ngrams))))
            for gram, count in count_ngrams(text, order).items()
        }

    values = []
    for text, references in examples:
        total = 0.0
        for reference in references:
            difference = max(0, len(text) - 1) - max(0, len(reference) - 1)
            for order in (1, 2, 3, 4):
                hypothesis, target = compute_weights(text, order), compute_weights(reference, order)
                dot = sum(min(value, target.get(gram, 0)) * target.get(gram, 0) for gram, value in hypothesis.items())
                norm = math.hypot(*hypothesis.values()) * math.hypot(*target.values())
                total += (dot / norm if norm else 0) * math.exp(-(difference**2) / (2 * SIGMA**2))
        values.append(10 * total / 4 / len(references))
    return values


def score_examples(examples: Examples) -> list[float]:
    tally = cider_d([text for text, _ in examples], [references for _, references in examples])
    assert tally.value == pytest.approx(tally.per_example.mean(), abs=1e-12)
    return tally.per_example.tolist()


@given(EXAMPLES)
def test_cider_follows_its_definition(examples: Examples) -> None:
    assert score_examples(examples) == pytest.approx(cider_by_definition(examples), abs=1e-12)


@given(EXAMPLES)
def test_values_are_bounded_and_the_reference_scores_best(examples: Examples) -> None:
    single = [(text, references[:1]) for text, references in examples]
    best = score_examples([(references[0], references) for _, references in single])
    for value, maximum in zip(score_examples(single), best, strict=True):
        assert 0 <= value <= maximum + 1e-9
        assert maximum <= 10 + 1e-9


@given(EXAMPLES)
def test_unknown_words_score_0(examples: Examples) -> None:
    assert not any(score_examples([([token.upper() for token in text], references) for text, references in examples]))


def test_unique_words_score_10() -> None:
    texts = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert score_examples([(text, [text]) for text in texts]) == pytest.approx([10, 10])


def test_one_image_is_undefined() -> None:
    tally = cider_d([["a"]], [[["a"]]])
    assert tally.value is None
    assert tally.note is not None
    assert "several images" in tally.note


def test_one_text_for_all_images_has_a_note() -> None:
    tally = cider_d([["a"], ["b"]], [[["a"]], [["a"]]])
    assert tally.value == 0
    assert tally.note is not None
    assert cider_d([["a"], ["b"]], [[["a"]], [["b"]]]).note is None


def test_without_images_it_is_undefined() -> None:
    assert cider_d([], []).value is None
