"""Every metric by its name: what holds of all of them."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics.registry import CAPTION_METRICS, LATEX_METRICS, METRICS, compare_answers, compute_scores

WORDS = st.lists(st.sampled_from(["cat", "dog", "on", "(1,2),(3,4)", "猫", r"\frac", "it's"]), max_size=6).map(" ".join)
SETS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=2)), min_size=2, max_size=4)
Set = list[tuple[str, list[str]]]


def by_name(examples: Set) -> dict[str, tuple[float, ...]]:
    found = compute_scores(METRICS, [own for own, _ in examples], [texts for _, texts in examples], num_resamples=20)
    return {one.name: one.per_example for one in found}


@settings(deadline=None)
@given(SETS)
def test_bounds_and_order(examples: Set) -> None:
    found = by_name(examples)
    for name, values in found.items():
        assert all(0 <= value <= (10 if name == "CIDEr-D" else 1) + 1e-9 for value in values)
    turned = by_name(examples[::-1])
    assert {name: pytest.approx(values[::-1], abs=1e-12) for name, values in found.items()} == turned


def test_identical_texts_are_best() -> None:
    texts = ["a cat sits on (1,2),(3,4)", "two dogs run over there", r"\frac { a } { b } + c"]
    best = {name: 0.0 if metric.better == "lower" else 1.0 for name, metric in METRICS.items()} | {"CIDEr-D": 10.0}
    for one in compute_scores(METRICS, texts, [[text] for text in texts]):
        assert one.value == pytest.approx(best[one.name], abs=1e-7)
        assert one.interval == pytest.approx((best[one.name],) * 2, abs=1e-7)


def test_scores_come_in_the_order_of_the_names() -> None:
    names = ["ANLS", "CIDEr-D", "BLEU-4", "BLEU-1"]
    found = compute_scores(names, ["a", "b"], [["a"], ["b", "c"]])
    assert [one.name for one in found] == names
    assert all(len(one.per_example) == 2 for one in found)


def test_an_interval_holds_its_value() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["cat", "dog", "on", "mat"], size=8)) for _ in range(60)]
    for one in compute_scores([*CAPTION_METRICS, *LATEX_METRICS], texts[:30], [[text] for text in texts[30:]]):
        assert one.value is not None
        assert one.interval is not None
        assert one.interval[0] <= one.value <= one.interval[1]


def test_one_picture() -> None:
    found = {one.name: one for one in compute_scores(METRICS, ["a cat"], [["a cat", "a dog"]])}
    cider = found["CIDEr-D"]
    assert (cider.value, cider.per_example, cider.interval) == (None, (), None)
    assert cider.note is not None
    assert "several pictures" in cider.note
    assert found["exact-match"].value == 1
    assert found["box-IoU"].note == "no reference holds a box"
    assert all(one.interval is None for one in found.values())


def test_no_examples() -> None:
    for one in compute_scores(METRICS, [], []):
        assert (one.value, one.per_example, one.interval) == (None, (), None)
        assert one.note is not None


def test_chinese() -> None:
    found = {
        one.name: one.value for one in compute_scores(METRICS, ["一只猫。", "两只狗在跑"], [["一只猫"], ["三只狗在跑"]])
    }
    assert found["BLEU-1"] == pytest.approx(7 / 8)
    assert found["token-F1"] == pytest.approx((1 + 0.8) / 2)


def test_latex() -> None:
    found = compute_scores(LATEX_METRICS, [r"\frac {a} b ", r"x ^ 2"], [[r"\frac{a}b"], [r"x^3"]])
    assert [one.value for one in found[:2]] == pytest.approx([0.5, 1 / 6])


def test_what_cannot_be_scored() -> None:
    with pytest.raises(UsageError, match="METEOR · one of BLEU-1, "):
        compute_scores(["METEOR"], ["a"], [["a"]])
    with pytest.raises(LorgnetteError, match="no reference · example 2"):
        compute_scores(["ANLS"], ["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="2 answers to 1 examples"):
        compute_scores(["ANLS"], ["a", "b"], [["a"]])


def test_two_systems() -> None:
    references = [[f"a cat number {i} sits here"] for i in range(20)]
    wrong, right = ["a dog"] * 20, [texts[0] for texts in references]
    found = compare_answers([*CAPTION_METRICS, "edit-distance"], wrong, right, references)
    assert [one.name for one in found] == [*CAPTION_METRICS, "edit-distance"]
    for one in found:
        assert one.value is not None
        assert one.interval is not None
        assert one.p_value is not None
        assert (one.value > 0) == (one.name != "edit-distance")
        assert one.p_value < 0.01
        assert one.interval[0] <= one.value + 1e-9
        assert one.value - 1e-9 <= one.interval[1]


def test_a_thousand_pictures_take_moments() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(500)])
    texts = [" ".join(rng.choice(words, size=10)) + "." for _ in range(6000)]
    start = time.perf_counter()
    compute_scores(CAPTION_METRICS, texts[:1000], [texts[1000 + 5 * i : 1005 + 5 * i] for i in range(1000)])
    assert time.perf_counter() - start < 10


def test_the_page_names_every_metric_there_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`([^`]+)`", cell)}
    assert named | {"BLEU-2", "BLEU-3"} == set(METRICS)
