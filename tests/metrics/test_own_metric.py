"""Metrics of the user: how they are named, what their value is, and what is refused."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lorgnette.errors import UsageError
from lorgnette.metrics import own_metric
from lorgnette.metrics.own_metric import OwnMetricError, check_own_metrics, register_metric, resolve_metric_names
from lorgnette.metrics.registry import METRICS, compute_scores, compute_tallies, expand_metric_names
from lorgnette.metrics.report import parse_metric_names


@pytest.fixture(autouse=True)
def _restore_metrics() -> Iterator[None]:
    yield
    for name in own_metric._own:
        del METRICS[name]
    own_metric._own.clear()


def is_short(answer: str, references: list[str]) -> bool:
    """Fewer than three words.

    And more text."""
    return len(answer.split()) < 3


def test_a_function_is_a_metric_like_the_others() -> None:
    assert register_metric(is_short) is is_short
    assert METRICS["is_short"].description == "Fewer than three words."
    [score, other] = compute_scores(["is_short", "exact-match"], ["a", "a b", "a b c", "d"], [["a"]] * 4)
    assert (score.value, score.per_example) == (0.75, (1.0, 1.0, 0.0, 1.0))
    assert score.interval is not None
    assert other.value == 0.25


def test_references_are_a_list_of_all() -> None:
    @register_metric(better="lower", name="most-words")
    def count(answer: str, references: list[str]) -> int:
        return max(len(text.split()) for text in references) + len(answer)

    assert METRICS["most-words"].sign == -1
    tally = compute_tallies(["most-words"], ["xyz"], [("a b", "c")])["most-words"]
    assert tally.value == 5.0


def test_metrics_are_named_or_given() -> None:
    assert resolve_metric_names(["ROUGE-L", is_short]) == ("ROUGE-L", "is_short")
    assert resolve_metric_names(is_short) == ("is_short",)
    assert resolve_metric_names("ROUGE-L, is_short") == ("ROUGE-L", "is_short")
    register_metric(is_short, name="brief")
    assert expand_metric_names(resolve_metric_names([is_short, "latex"]))[:2] == ("is_short", "latex-exact-match")
    assert parse_metric_names([is_short, "exact-match"], ()) == ("is_short", "exact-match")
    assert parse_metric_names(None, ("BLEU-1",)) == ("BLEU-1",)


def test_a_function_that_is_registered_again_replaces_the_first() -> None:
    """A cell of a notebook runs again after a change."""

    def define(value: float) -> Callable[..., float]:
        def mine(answer: str, references: list[str]) -> float:
            return value

        return mine

    for value in (1.0, 2.0):
        assert resolve_metric_names([define(value)]) == ("mine",)
        assert compute_tallies(["mine"], ["a"], [["b"]])["mine"].value == value


@pytest.mark.parametrize(
    ("function", "name", "message"),
    [
        (is_short, "BLEU-4", "a metric of lorgnette has this name"),
        (is_short, "caption", "a metric of lorgnette has this name"),
        (is_short, "loss", "a metric of lorgnette has this name"),
        (is_short, "a,b", "no name for a metric"),
        (lambda answer, references: 1, None, "no name for a metric · <lambda>"),
        (3, None, "no metric · a int"),
    ],
)
def test_what_is_no_metric_is_refused(function: Any, name: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        register_metric(function, name=name)
    assert not own_metric._own


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "gave nan, which is not a finite number"), (None, "gave None"), ("1", "gave '1'"), (0, "")],
)
def test_a_value_that_is_no_number_names_the_answer(value: Any, message: str) -> None:
    def mine(answer: str, references: list[str]) -> Any:
        return value if answer == "odd" else 1.0

    register_metric(mine)
    if not message:
        return check_own_metrics(["mine"], [["odd"]])
    with pytest.raises(OwnMetricError, match=message + r".* · metric mine, answer 'odd' · "):
        compute_tallies(["mine"], ["even", "odd"], [["a"], ["a"]])
    return None


def test_a_metric_that_fails_is_found_before_a_model_is_loaded() -> None:
    @register_metric
    def broken(answer: str, references: list[str]) -> float:
        return 1 / len(answer[:0])

    with pytest.raises(OwnMetricError, match="the metric failed: ZeroDivisionError: division by zero") as raised:
        check_own_metrics(["broken", "BLEU-1"], [["a"]])
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    check_own_metrics(["BLEU-1"], [["a"]])
    check_own_metrics(["broken"], [])


def test_better_is_one_of_two_words() -> None:
    with pytest.raises(UsageError, match="better='max' · write 'higher' or 'lower'"):
        register_metric(len, name="mine", better="max")  # type: ignore[type-var,arg-type,call-overload]
