"""BLEU against its definition written out, and what must hold of it."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.bleu import MAX_ORDER, bleu

TOKENS = st.lists(st.sampled_from("abcd"), max_size=8)
EXAMPLES = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=3)), min_size=1, max_size=5)
Examples = list[tuple[list[str], list[list[str]]]]


def counted(text: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


def plain(examples: Examples) -> list[float]:
    """The definition, gram by gram."""
    own = sum(len(text) for text, _ in examples)
    closest = sum(min((abs(len(r) - len(text)), len(r)) for r in references)[1] for text, references in examples)
    found, product = [], 1.0
    for order in range(1, MAX_ORDER + 1):
        matched = tried = 0
        for text, references in examples:
            most: Counter[tuple[str, ...]] = Counter()
            for reference in references:
                most |= counted(reference, order)
            matched += (counted(text, order) & most).total()
            tried += max(0, len(text) - order + 1)
        product *= (matched + 1e-15) / (tried + 1e-9)
        ratio = (own + 1e-15) / (closest + 1e-9)
        found.append(product ** (1 / order) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1))
    return found


@given(EXAMPLES)
def test_as_defined(examples: Examples) -> None:
    found = bleu([text for text, _ in examples], [references for _, references in examples])
    assert [one.value for one in found] == pytest.approx(plain(examples), rel=1e-12)
    alone = [plain([example]) for example in examples]
    for order, one in enumerate(found):
        assert one.per_example.tolist() == pytest.approx([values[order] for values in alone], rel=1e-12)
        assert one.value is not None
        assert 0 <= one.value <= 1


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=4, max_size=9), min_size=1, max_size=5))
def test_the_reference_itself_is_best(texts: list[list[str]]) -> None:
    for one in bleu(texts, [[text, ["x"]] for text in texts]):
        assert one.value == pytest.approx(1, abs=1e-7)


@given(EXAMPLES)
def test_order_does_not_count(examples: Examples) -> None:
    shuffled = examples[1:] + examples[:1]
    one, other = (bleu([e[0] for e in some], [e[1] for e in some]) for some in (examples, shuffled))
    assert [a.value for a in one] == [a.value for a in other]
    for a, b in zip(one, other, strict=True):
        assert a.per_example.tolist()[1:] + a.per_example.tolist()[:1] == b.per_example.tolist()


def test_nothing_said_is_nought() -> None:
    assert [one.value for one in bleu([[]], [[["a"]]])] == [0, 0, 0, 0]
