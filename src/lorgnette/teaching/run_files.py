"""The files of a `teach` run that follow from its journal: captions.csv, suggestions.csv, rounds/0003.json.

Each is written whole, beside its place and then renamed. An image is written with its absolute path, so that the tables
can be copied.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorgnette.data.formats.csv import COLUMNS, format_row
from lorgnette.io.atomic import write_json, write_text

SURETY_COLUMN = "surety"


def write_captions(path: Path, rows: Iterable[tuple[Path, str]]) -> None:
    """The answers that a person gave: rows of (image, text). Raises LorgnetteError if it cannot be written."""
    lines = [COLUMNS, *((os.path.abspath(image), text) for image, text in rows)]
    write_text(path, "".join(map(format_row, lines)))


def write_suggestions(path: Path, rows: Iterable[tuple[Path, str, float]]) -> None:
    """What the model says of the other images, the least sure first: rows of (image, text, surety)."""
    ordered = sorted(rows, key=lambda row: row[2])
    cells = [(os.path.abspath(image), text, f"{surety:.3f}") for image, text, surety in ordered]
    write_text(path, "".join(map(format_row, [(*COLUMNS, SURETY_COLUMN), *cells])))


def write_round(folder: Path, number: int, record: dict[str, Any]) -> None:
    """What is known of a round. Raises LorgnetteError if it cannot be written."""
    write_json(folder / f"{number:04}.json", record)
