"""The tables of labels and fields as lines of text."""

from lorgnette.metrics.answer_tables import count_answers, format_tables

REFERENCES = [["cat"]] * 3 + [["dog"]]
BEFORE, AFTER = ["I see a cat", "dog", "I see a cat", ""], ["cat", "cat.", "dog", "dog"]


def squeeze(lines: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in lines]


def test_labels_before_and_after() -> None:
    lines = format_tables(count_answers(["accuracy"], [BEFORE, AFTER], REFERENCES), ["before", "after"])
    assert squeeze(lines[:7]) == [
        "label examples precision recall F1",
        "cat 3 – → 1.00 0.00 → 0.67 0.00 → 0.80",
        "dog 1 0.00 → 0.50 0.00 → 1.00 0.00 → 0.67",
        "",
        "answers, after cat dog other",
        "cat 2 1 0",
        "dog 0 1 0",
    ]
    assert lines[7:] == ["3 of 4 answers are no label, before: 'I see a cat' 2×, '' 1×"]
    assert len({len(line) for line in lines[:3]}) == 1


def test_labels_without_examples_have_no_rows() -> None:
    """`bird` was answered, so it has a column; `fish` has nothing."""
    tables = count_answers(["accuracy"], [["cat", "bird", "cat", "dog"]], REFERENCES, ["bird", "fish"])
    assert squeeze(format_tables(tables, ["after"])) == [
        "label examples precision recall F1",
        "cat 3 1.00 0.67 0.80",
        "dog 1 1.00 1.00 1.00",
        "",
        "answers, after bird cat dog other",
        "cat 1 2 0 0",
        "dog 0 0 1 0",
    ]


def test_a_table_wider_than_the_terminal_has_a_list_of_mistakes() -> None:
    names = [f"label {i}" for i in range(12)]
    answers = [*names[:10], "label 0", "label 0"]
    tables = count_answers(["macro-F1"], [answers], [[name] for name in names])
    lines = format_tables(tables, ["base"], page="report.html")
    mistakes = "most common mistakes, base: label 0 for label 10 1×, label 0 for label 11 1×"
    assert lines[-1] == f"{mistakes}; all are in report.html"
    assert len(lines) == 1 + 12 + 1
    wide = format_tables(tables, ["base"], width=141)
    assert len(wide) == 1 + 12 + 1 + 13
    assert max(map(len, wide)) <= 141


def test_fields_before_and_after() -> None:
    answers = [['{"b": 1}', "no"], ['{"a": 1}', '{"a": 1, "c": 2}']]
    tables = count_answers(["json-valid"], answers, [['{"a": 1}'], ['{"a": 2}']])
    assert squeeze(format_tables(tables, ["before", "after"])) == [
        "field examples right wrong missing only in answer",
        "a 2 0 → 1 0 → 1 2 → 0 0 → 0",
        "b 0 0 → 0 0 → 0 0 → 0 1 → 0",
        "c 0 0 → 0 0 → 0 0 → 0 0 → 1",
    ]


def test_other_metrics_have_no_tables() -> None:
    assert format_tables(count_answers(["ANLS"], [AFTER], REFERENCES), ["base"]) == []
