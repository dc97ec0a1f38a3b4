"""Reads and writes predictions.jsonl, and loads its images for trackers."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_text
from lorgnette.report.thumbnail import UnreadableImageError, load_thumbnail
from lorgnette.types import PredictionRow


def load_thumbnails(rows: Sequence[PredictionRow], max_side: int) -> Iterator[tuple[PIL.Image.Image, str]]:
    """Each image with its row's caption. Unreadable images are skipped."""
    for row in rows:
        for path in row.images:
            with contextlib.suppress(UnreadableImageError):
                yield load_thumbnail(path, max_side), row.caption


def write_predictions(path: Path, rows: Sequence[PredictionRow]) -> None:
    """Write one JSON object per line; images are paths."""
    records = (
        {
            "id": row.id,
            "images": [str(image) for image in row.images],
            "prompt": row.prompt,
            "references": list(row.references),
            "base": row.base,
            "tuned": row.tuned,
        }
        for row in rows
    )
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_predictions(path: Path) -> list[PredictionRow]:
    """Raises LorgnetteError for an unreadable file, and with the line number for an invalid line."""
    try:
        # Not splitlines(): it also splits at U+2028 and the like, and JSON does not escape these within a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LorgnetteError(
            f"cannot read predictions: {error}", where=str(path), hint="name a file of JSON lines in UTF-8"
        ) from error
    return [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_row(line: str, where: str) -> PredictionRow:
    try:
        record: dict[str, Any] = json.loads(line)
        return PredictionRow(
            id=_check_text(record["id"]),
            images=tuple(map(Path, _check_texts(record["images"]))),
            prompt=_check_text(record["prompt"]),
            references=_check_texts(record["references"]),
            base=None if record["base"] is None else _check_text(record["base"]),
            tuned=None if record["tuned"] is None else _check_text(record["tuned"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise LorgnetteError(
            f"not a prediction ({type(error).__name__}: {error})", where=where, hint="run `lorgnette predict` again"
        ) from error


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{json.dumps(value)[:60]} is not a text")
    return value


def _check_texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{json.dumps(value)[:60]} is not a list of texts")
    return tuple(map(_check_text, value))
