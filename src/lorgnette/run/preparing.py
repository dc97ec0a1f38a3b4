"""`prepare` and `check`: a source looked over and put in order. No torch."""

import json
from pathlib import Path
from typing import Literal

from rich.console import Console

from lorgnette import data
from lorgnette.report.terminal import Terminal


def prepare(
    source: Path,
    out: Path = Path("data"),
    *,
    prompt: str = "COCO Yes:",
    holdout: int = 4,
    split: Literal["picture", "tail"] = "picture",
    rows: int | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    console: Console | None = None,
) -> "data.Prepared":
    """Write the source as conversations JSON, whole and in a training and a test part, into `out`."""
    terminal = Terminal(console)
    prepared = data.prepare(source, out, prompt=prompt, holdout=holdout, split_=split, rows=rows, on_bad_row=on_bad_row)
    for problem in prepared.problems:
        terminal.warn(f"left out: {problem}")
    return prepared


def check(
    source: Path,
    *,
    prompt: str = "COCO Yes:",
    rows: int | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> "data.Report":
    """Look a data set over from headers and text; say what is there and name every broken row."""
    report = data.check(data.read(source, prompt=prompt, rows=rows))
    return report
