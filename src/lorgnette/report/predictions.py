"""Reads and writes predictions.jsonl, and loads its images for trackers."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import PIL.Image
from pydantic import TypeAdapter, ValidationError

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_text
from lorgnette.report.thumbnail import UnreadableImageError, load_thumbnail
from lorgnette.types import PredictionRow

_ROW = TypeAdapter(PredictionRow)


def load_thumbnails(rows: Sequence[PredictionRow], max_side: int) -> Iterator[tuple[PIL.Image.Image, str]]:
    """Each image with its row's caption. Unreadable images are skipped."""
    for row in rows:
        for path in row.images:
            with contextlib.suppress(UnreadableImageError):
                yield load_thumbnail(path, max_side), row.caption


def write_predictions(path: Path, rows: Sequence[PredictionRow]) -> None:
    """Write one JSON object per line; images are paths."""
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False, default=str) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_predictions(path: Path) -> list[PredictionRow]:
    """Raises LorgnetteError for an unreadable file, and with the line number for an invalid line."""
    try:
        # Not splitlines(): it also splits at U+2028 and the like, and JSON does not escape these within a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        hint = "name a file of JSON lines in UTF-8"
        raise LorgnetteError(f"cannot read predictions: {error}", where=str(path), hint=hint) from error
    return [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_row(line: str, where: str) -> PredictionRow:
    try:
        return _ROW.validate_json(line, strict=True)
    except ValidationError as error:
        detail = error.errors()[0]
        field = "".join(f"{part}: " for part in detail["loc"])
        message, hint = f"not a prediction ({field}{detail['msg']})", "run `lorgnette predict` again"
        raise LorgnetteError(message, where=where, hint=hint) from error
