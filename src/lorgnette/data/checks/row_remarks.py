"""Counts what is odd in many rows of a source alike: keys that are not read, blanks around texts.

`check` and `train` print each once for a source. Memory does not grow with the number of rows.
"""

from dataclasses import dataclass
from pathlib import Path

from lorgnette.types import Example, Finding, FindingKind, Problem

_MAX_KEYS = 50
"""Unread keys of a source that are counted by name."""
_OTHER_KEYS = "another"
Remarks = list[tuple[FindingKind, str]]
"""(kind, key) of each."""


@dataclass(slots=True)
class _Count:
    first_row: int
    last_row: int
    num_rows: int = 1


class RemarkCounter:
    """Counts the rows of each source for each remark. The examples of one row must come one after the other."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Path, FindingKind, str], _Count] = {}

    def add(self, example: Example, remarks: "Remarks") -> None:
        """remarks: `list_remarks` of the example."""
        for kind, key in remarks:
            name = (example.source, kind, key)
            if name not in self._counts and len(self._counts) >= _MAX_KEYS and kind == "unread-key":
                name = (example.source, kind, _OTHER_KEYS)
            count = self._counts.setdefault(name, _Count(example.row, example.row))
            if count.last_row != example.row:
                count.last_row, count.num_rows = example.row, count.num_rows + 1

    def build_findings(self) -> list[Finding]:
        """One for each remark about a source, at the first row."""
        return [
            Finding(kind, Problem(source, count.first_row, *_describe(kind, key, count.num_rows)))
            for (source, kind, key), count in self._counts.items()
        ]


def list_remarks(example: Example) -> Remarks:
    """What is odd in an example."""
    remarks: Remarks = [("unread-key", key) for key in example.unread_keys]
    if example.is_trimmed:
        remarks.append(("trimmed", ""))
    for text in [turn.text for turn in example.turns if turn.role == "assistant" and turn.has_loss]:
        if text != text.strip() or "\r" in text:
            remarks.append(("blanks", ""))
            break
    return remarks


def _describe(kind: FindingKind, key: str, num_rows: int) -> tuple[str, str]:
    """(message, hint)"""
    rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
    if kind == "unread-key":
        name = "another key" if key == _OTHER_KEYS else f"key {key!r}"
        return f"{name} is not read ({rows})", "rename it if it matters (docs/data.md has the keys that are read)"
    if kind == "trimmed":
        return f"blanks around a text are removed ({rows})", "nothing to do, unless the blanks matter"
    message = f"an answer begins or ends with blanks, or has a carriage return, and the model learns them ({rows})"
    return message, "remove them, unless the model is to write them"
