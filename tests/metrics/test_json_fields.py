"""JSON answers field by field: values, positions, missing and extra fields, texts that are no JSON."""

import json

import pytest

from lorgnette.metrics.json_fields import FieldRow, compare_objects, count_fields, parse_object
from lorgnette.metrics.registry import JSON_METRICS, compute_scores

REFERENCE = {"total": 12, "buyer": {"name": "Ann Lee", "vat": None}, "items": [{"price": 1}, {"price": 2.5}]}


def score(answer: str, reference: object = REFERENCE) -> tuple[float | None, ...]:
    """(field accuracy, exact match, valid)"""
    return tuple(tally.value for tally in compare_objects([answer], [[json.dumps(reference)]]))


@pytest.mark.parametrize(
    ("answer", "num_right", "num_fields"),
    [
        (REFERENCE, 5, 5),
        ({**REFERENCE, "total": 12.0}, 5, 5),
        ({**REFERENCE, "total": "12"}, 4, 5),
        ({**REFERENCE, "total": True}, 4, 5),
        ({**REFERENCE, "buyer": {"name": " Ann  Lee\n", "vat": None}}, 5, 5),
        ({**REFERENCE, "buyer": {"name": "ann lee", "vat": None}}, 4, 5),
        ({**REFERENCE, "buyer": {"name": "Ann Lee"}}, 4, 5),  # null is not the same as missing
        ({**REFERENCE, "buyer": {"name": "Ann Lee", "vat": 0}}, 4, 5),
        ({**REFERENCE, "buyer": "Ann Lee"}, 3, 6),  # two fields are missing, another is extra
        ({**REFERENCE, "tax": 1}, 5, 6),
        ({**REFERENCE, "items": [{"price": 2.5}, {"price": 1}]}, 3, 5),  # by position
        ({**REFERENCE, "items": [{"price": 1}]}, 4, 5),
        ({**REFERENCE, "items": []}, 3, 6),
        ({"total": 12}, 1, 5),
        ({}, 0, 6),
    ],
)
def test_fields_are_compared(answer: dict[str, object], num_right: int, num_fields: int) -> None:
    expected = (num_right / num_fields, float(num_right == num_fields), 1.0)
    assert score(json.dumps(answer)) == pytest.approx(expected)


def test_one_is_not_true() -> None:
    assert score('{"a": 1}', {"a": True})[0] == 0
    assert score('{"a": true}', {"a": 1})[0] == 0
    assert score('{"a": true}', {"a": True})[0] == 1
    assert score("{}", {}) == (1, 1, 1)


@pytest.mark.parametrize(
    ("answer", "is_read", "is_valid"),
    [
        ('{"a": 1}', True, True),
        (' {"a": 1}\n', True, True),
        ('```json\n{"a": 1}\n```', True, False),
        ('```\n{"a": 1}```\n', True, False),
        ('The answer is {"a": 1}', False, False),
        ('{"a": 1', False, False),
        ('{"a": 1, "a": 1}', False, False),  # a repeated key
        ("[1]", False, False),
        ("", False, False),
        ("```" + " \n" * 50_000, False, False),
        ('{"a":' * 100_000, False, False),
        ("[" * 100_000 + "]" * 100_000, False, False),
        ('{"a": ' + "9" * 5000 + "}", False, False),
    ],
)
def test_which_answers_are_read(answer: str, is_read: bool, is_valid: bool) -> None:
    assert score(answer, {"a": 1}) == (is_read, is_read, is_valid)


def test_an_object_of_a_list_only_is_no_reference() -> None:
    assert parse_object("[1, 2]") is None
    assert parse_object('{"a": [1, 2]}') == {"a": [1, 2]}


def test_the_best_of_several_references_counts() -> None:
    fields, equal, _ = compare_objects(['{"a": 1, "b": 2}'], [['{"a": 1, "b": 3}', '{"a": 1, "b": 2}', '{"a": 0}']])
    assert (fields.value, equal.value) == (1.0, 1.0)


def test_fields_are_counted_over_all_examples() -> None:
    """The value is of all fields together, not the mean of the examples' shares."""
    answers, references = ['{"a": 1}', '{"a": 0, "b": 0, "c": 0}'], [['{"a": 1}'], ['{"a": 1, "b": 1, "c": 1}']]
    fields, _, _ = compare_objects(answers, references)
    assert fields.value == 1 / 4
    assert fields.per_example.tolist() == [1.0, 0.0]


def test_the_table_of_fields() -> None:
    references = [[json.dumps(REFERENCE)], ['{"total": 3}'], ['{"total": 4}']]
    answers = [json.dumps({**REFERENCE, "items": [{"price": 1}, {"price": 0}, {"price": 9}]}), '{"total": 5}', "four"]
    counts = count_fields(answers, references)
    assert counts.rows == (
        FieldRow("total", 3, 1, 1, 0),
        FieldRow("buyer.name", 1, 1, 0, 0),
        FieldRow("buyer.vat", 1, 1, 0, 0),
        FieldRow("items[].price", 2, 1, 0, 1),
    )
    assert (counts.num_answers, counts.num_valid, counts.num_equal) == (3, 2, 0)
    assert [row.accuracy for row in counts.rows] == [1 / 3, 1, 1, 1 / 2]
    assert [row.num_wrong for row in counts.rows] == [1, 0, 0, 1]
    assert counts.as_dict()["fields"][0]["accuracy"] == 1 / 3


def test_references_that_are_no_objects() -> None:
    some, none = (
        compute_scores(JSON_METRICS, ['{"a": 1}'] * 2, references)
        for references in ([['{"a": 1}'], ["{a}"]], [["x"], ["y"]])
    )
    assert [score.value for score in some] == [0.5, 0.5, 1.0]
    assert some[0].note == "1 of 2 references are no JSON object and count as wrong"
    assert [score.value for score in none] == [None, None, 1.0]
    assert none[0].note == "no reference is a JSON object"
