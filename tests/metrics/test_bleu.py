"""BLEU compared with a direct implementation of its definition, and its properties."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.bleu import MAX_ORDER, bleu

TOKENS = st.lists(st.sampled_from("abcd"), max_size=8)
EXAMPLES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=5)
Examples = list[tuple[list[str], list[list[str]]]]


def count_ngrams(text: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


def bleu_by_definition(examples: Examples) -> list[float]:
    """The definition, n-gram by n-gram."""
    length = sum(len(text) for text, _ in examples)
    closest = sum(min((abs(len(r) - len(text)), len(r)) for r in references)[1] for text, references in examples)
    values, product = [], 1.0
    for order in range(1, MAX_ORDER + 1):
        matches = total = 0
        for text, references in examples:
            max_counts: Counter[tuple[str, ...]] = Counter()
            for reference in references:
                max_counts |= count_ngrams(reference, order)
            matches += (count_ngrams(text, order) & max_counts).total()
            total += max(0, len(text) - order + 1)
        product *= (matches + 1e-15) / (total + 1e-9)
        ratio = (length + 1e-15) / (closest + 1e-9)
        values.append(product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1))
    return values


@given(EXAMPLES)
def test_bleu_follows_its_definition(examples: Examples) -> None:
    tallies = bleu([text for text, _ in examples], [references for _, references in examples])
    assert [tally.value for tally in tallies] == pytest.approx(bleu_by_definition(examples), rel=1e-12)
    single = [bleu_by_definition([example]) for example in examples]
    for order, tally in enumerate(tallies):
        assert tally.per_example.tolist() == pytest.approx([values[order] for values in single], rel=1e-12)
        assert tally.value is not None
        assert 0 <= tally.value <= 1


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=4, max_size=9), min_size=1, max_size=5))
def test_the_reference_scores_best(texts: list[list[str]]) -> None:
    for tally in bleu(texts, [[text, ["x"]] for text in texts]):
        assert tally.value == pytest.approx(1, abs=1e-7)


@given(EXAMPLES)
def test_the_order_of_examples_does_not_matter(examples: Examples) -> None:
    shuffled = examples[1:] + examples[:1]
    first, second = (bleu([e[0] for e in part], [e[1] for e in part]) for part in (examples, shuffled))
    assert [tally.value for tally in first] == [tally.value for tally in second]
    for a, b in zip(first, second, strict=True):
        assert a.per_example.tolist()[1:] + a.per_example.tolist()[:1] == b.per_example.tolist()


def test_an_empty_answer_scores_0() -> None:
    assert [tally.value for tally in bleu([[]], [[["a"]]])] == [0, 0, 0, 0]
