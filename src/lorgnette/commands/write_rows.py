"""`write_rows`: rows in memory → a data file. `train` does it by itself; other commands take the file."""

from operator import length_hint
from pathlib import Path
from typing import Any

from lorgnette import data
from lorgnette.data import memory_rows
from lorgnette.data.row_location import ColumnChoice
from lorgnette.report.console import Terminal


def write_rows(
    rows: Any,
    out: Path | str,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    on_bad_row: data.OnBadRow = "error",
    needs_answer: bool = False,
    terminal: Terminal | None = None,
) -> Path:
    """Write rows in memory into the new folder `out`, as data.jsonl and images/. Returns the path of data.jsonl.

        lorgnette.write_rows([{"image": PIL.Image.open("cat.jpg"), "caption": "a cat"}], "cats")

    rows: dicts with the keys of any format of docs/data.md, a pandas DataFrame, a datasets.Dataset. An image is a
    PIL.Image, an array of uint8, bytes, or a path. Nothing is lost, and nothing is half written. image_column,
    caption_column: if they are not recognized. on_bad_row: error, or skip and name them.
    needs_answer: also refuse a row without a caption key, which `predict` answers.
    Raises LorgnetteError that lists the rows that cannot be used, UsageError if `out` exists.
    """
    terminal = terminal or Terminal()
    columns = ColumnChoice(image_column, caption_column)
    with terminal.show_progress("rows", length_hint(rows)) as advance:
        written = memory_rows.write_rows(
            rows, Path(out), columns=columns, on_bad_row=on_bad_row, needs_answer=needs_answer, on_progress=advance
        )
    for line in data.format_problems(written.problems):
        terminal.warn(f"skipped: {line}")
    for finding in written.remarks:
        terminal.warn(str(finding.problem))
    terminal.print(f"rows       {written.num_rows} in {written.path}")
    return written.path
