"""The tables of labels and of JSON fields, as pages show them and as CSV; label_table.html.j2 is their markup."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from lorgnette.io.parse import shorten
from lorgnette.metrics.answer_tables import AnswerTables, format_share
from lorgnette.metrics.json_fields import FieldCounts, FieldRow
from lorgnette.metrics.labels import OTHER, LabelCounts

MAX_CONFUSION_LABELS = 50
"""More labels have a list of the most common mistakes instead of a confusion table."""
NUM_MISTAKES = 50
MAX_FLAT_COLUMNS = 6
"""Names of more columns stand upright, so that a page of usual width has the table without scrolling."""


@dataclass(frozen=True, slots=True)
class Cell:
    """kind: how it is colored, as strongly as `share` says: right, wrong, or "" for not at all."""

    text: str
    kind: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """groups: (text, number of columns) above the header, after the first column. rows: (name, cells).

    is_wide: the names of its columns stand upright.
    """

    title: str
    file_name: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    groups: tuple[tuple[str, int], ...] = ()
    hint: str = ""
    is_wide: bool = False

    @property
    def csv(self) -> str:
        """One header line; a column under a group has the group's name before its own."""
        names = [f"{group}, " if group else "" for group, span in self.groups for _ in range(span)]
        header = [name + text for name, text in zip(names, self.header[1:], strict=True)] if names else self.header[1:]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([self.header[0], *header])
        writer.writerows([name, *(cell.text for cell in cells)] for name, cells in self.rows)
        return file.getvalue()


@dataclass(frozen=True, slots=True)
class AnswerSection:
    """A section of a page. id: of its heading."""

    id: str
    title: str
    hint: str
    tables: tuple[AnswerTable, ...]


def build_answer_sections(tables: AnswerTables, names: Sequence[str]) -> list[AnswerSection]:
    """The sections of the tables that there are. names: of the candidates, such as before and after."""
    sections = []
    if tables.labels:
        hint = (
            "An answer is a label if both are equal without differences in letter case, white space and a full stop at "
            f"the end. All answers that are no label are “{OTHER}”."
        )
        parts = [_build_label_counts(tables.labels, names)]
        parts += [
            _build_confusion(counts, name, i)
            for i, (counts, name) in enumerate(zip(tables.labels, names, strict=True), 1)
        ]
        sections.append(AnswerSection("labels", "Labels", hint, tuple(parts)))
    if tables.fields:
        valid = "; ".join(
            f"{name}: {counts.num_valid} of {counts.num_answers} answers are a JSON object, {counts.num_equal} have "
            "every field right"
            for counts, name in zip(tables.fields, names, strict=True)
        )
        sections.append(AnswerSection("fields", "Fields", f"{valid}.", (_build_fields(tables.fields, names),)))
    return sections


def _build_label_counts(counts: Sequence[LabelCounts], names: Sequence[str]) -> AnswerTable:
    rows = []
    for of_label in zip(*(each.rows for each in counts), strict=True):
        shares = [share for row in of_label for share in (row.precision, row.recall, row.f1)]
        cells = [Cell(str(of_label[0].support)), *(Cell(format_share(share)) for share in shares)]
        rows.append((of_label[0].label, tuple(cells)))
    header = ("label", "examples", *("precision", "recall", "F1") * len(counts))
    return AnswerTable("Each label", "labels.csv", header, tuple(rows), (("", 1), *((name, 3) for name in names)))


def _build_confusion(counts: LabelCounts, name: str, number: int) -> AnswerTable:
    file_name = f"confusion-{number}.csv"
    if len(counts.labels) > MAX_CONFUSION_LABELS:
        mistakes = counts.mistakes[:NUM_MISTAKES]
        rows = tuple((label, (Cell(answer), Cell(str(count)))) for label, answer, count in mistakes)
        columns = ("label", "answer", "examples")
        return AnswerTable(f"Most common mistakes, {name}", file_name, columns, rows, hint=_describe_others(counts))
    confusion, shown = [], counts.find_shown_columns()
    for i in counts.find_shown_rows():
        row, support = counts.confusion[i], sum(counts.confusion[i])
        cells = (
            Cell(str(row[j]), "right" if i == j else "wrong", row[j] / support) if row[j] else Cell("0") for j in shown
        )
        confusion.append((counts.labels[i], tuple(cells)))
    hint = f"A row is the right label, a column the answer. {_describe_others(counts)}"
    names = (*counts.labels, OTHER)
    header = ("label", *(names[i] for i in shown))
    return AnswerTable(
        f"Answers, {name}", file_name, header, tuple(confusion), hint=hint, is_wide=len(shown) > MAX_FLAT_COLUMNS
    )


def _describe_others(counts: LabelCounts) -> str:
    if not counts.others:
        return ""
    listed = ", ".join(f"“{shorten(text) or '(empty)'}” ({count})" for text, count in counts.others)
    return f"The most common of “{OTHER}”: {listed}."


def _build_fields(counts: Sequence[FieldCounts], names: Sequence[str]) -> AnswerTable:
    rows_by_name = [{row.name: row for row in each.rows} for each in counts]
    rows = []
    for name in dict.fromkeys(name for rows in rows_by_name for name in rows):
        found = [by_name.get(name, FieldRow(name, 0, 0, 0, 0)) for by_name in rows_by_name]
        cells = [Cell(str(max(row.support for row in found)))]
        for row in found:
            cells.append(Cell(format_share(row.accuracy)))
            cells += [Cell(str(number)) for number in (row.num_wrong, row.num_missing, row.num_extra)]
        rows.append((name, tuple(cells)))
    columns = ("accuracy", "wrong", "missing", "only in answer")
    header, groups = ("field", "examples", *columns * len(counts)), (("", 1), *((name, len(columns)) for name in names))
    return AnswerTable("Each field", "fields.csv", header, tuple(rows), groups)
