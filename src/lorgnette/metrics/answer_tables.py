"""Tables of labels and of JSON fields, for the answers of several candidates, and their lines on a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorgnette.io.parse import shorten
from lorgnette.metrics.json_fields import FieldCounts, FieldRow, count_fields
from lorgnette.metrics.labels import OTHER, LabelCounts, LabelRow, count_labels
from lorgnette.metrics.registry import JSON_METRICS, LABEL_METRICS

NUM_MISTAKES = 6
_NAME_WIDTH, _COLUMN_WIDTH = 24, 12


@dataclass(frozen=True, slots=True)
class AnswerTables:
    """Counts of labels for the label metrics, and of fields for the JSON metrics.

    Both are [candidate], and empty without such metrics.
    """

    labels: tuple[LabelCounts, ...] = ()
    fields: tuple[FieldCounts, ...] = ()


def count_answers(
    metric_names: Iterable[str],
    answers: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    known_labels: Iterable[str] = (),
) -> AnswerTables:
    """The tables of answers [candidate][example], as far as the metrics ask for them. known_labels: further ones."""
    names, known_labels = set(metric_names), tuple(known_labels)
    labels = [count_labels(texts, references, known_labels) for texts in answers if names.intersection(LABEL_METRICS)]
    fields = [count_fields(texts, references) for texts in answers if names.intersection(JSON_METRICS)]
    return AnswerTables(tuple(labels), tuple(fields))


def format_tables(tables: AnswerTables, names: Sequence[str], *, width: int = 80, page: str = "") -> list[str]:
    """The tables of one or two candidates as lines of text, `before → after`.

    names: of the candidates. A confusion table wider than `width` is left out; `page` has it.
    """
    lines = list(_format_labels(tables.labels, names, width, page)) if tables.labels else []
    return [*lines, *_format_fields(tables.fields)] if tables.fields else lines


def format_share(value: float | None) -> str:
    """Two digits; a dash if there is nothing to divide by."""
    return "–" if value is None else f"{value:.2f}"


def _format_labels(counts: Sequence[LabelCounts], names: Sequence[str], width: int, page: str) -> Iterator[str]:
    yield _build_line("label", "examples", "precision", "recall", "F1")
    for rows in zip(*(each.rows for each in counts), strict=True):
        if not rows[0].support:
            continue
        shares: list[Callable[[LabelRow], float | None]] = [lambda r: r.precision, lambda r: r.recall, lambda r: r.f1]
        cells = [" → ".join(format_share(share(row)) for row in rows) for share in shares]
        yield _build_line(rows[0].label, str(rows[0].support), *cells)
    last, name = counts[-1], names[-1]
    columns = last.find_shown_columns()
    column_names = [(*last.labels, OTHER)[i] for i in columns]
    column_width = min(_COLUMN_WIDTH, max(map(len, column_names)))
    header = _build_line(f"answers, {name}", *column_names, width=column_width)
    if len(header) <= width:
        yield ""
        yield header
        for i in last.find_shown_rows():
            yield _build_line(last.labels[i], *(str(last.confusion[i][j]) for j in columns), width=column_width)
    elif last.mistakes:
        listed = ", ".join(f"{answer} for {label} {n}×" for label, answer, n in last.mistakes[:NUM_MISTAKES])
        yield f"most common mistakes, {name}: {listed}{f'; all are in {page}' if page else ''}"
    for each, name in zip(counts, names, strict=True):
        if each.others:
            listed = ", ".join(f"{shorten(text, 60)!r} {count}×" for text, count in each.others)
            yield f"{each.num_others} of {each.num_examples} answers are no label, {name}: {listed}"


def _format_fields(counts: Sequence[FieldCounts]) -> Iterator[str]:
    yield _build_line("field", "examples", "right", "wrong", "missing", "only in answer")
    rows_by_name = [{row.name: row for row in each.rows} for each in counts]
    for name in dict.fromkeys(name for rows in rows_by_name for name in rows):
        rows = [rows.get(name, FieldRow(name, 0, 0, 0, 0)) for rows in rows_by_name]
        numbers: list[Callable[[FieldRow], int]] = [
            lambda r: r.num_correct, lambda r: r.num_wrong, lambda r: r.num_missing, lambda r: r.num_extra
        ]  # fmt: skip
        cells = [" → ".join(str(number(row)) for row in rows) for number in numbers]
        yield _build_line(name, str(max(row.support for row in rows)), *cells)


def _build_line(name: str, *cells: str, width: int = _COLUMN_WIDTH) -> str:
    columns = "".join(f" {shorten(cell, _COLUMN_WIDTH + 2):>{width}}" for cell in cells)
    return f"{shorten(name, _NAME_WIDTH):<{_NAME_WIDTH}}{columns}"
