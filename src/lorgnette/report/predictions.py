"""Reads and writes predictions.jsonl, and loads its images for trackers."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import PIL.Image
from pydantic import TypeAdapter, ValidationError

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_text
from lorgnette.io.parse import MAX_LINES_BYTES, decode_utf8, parse_json, read_small_file
from lorgnette.report.thumbnail import UnreadableImageError, load_thumbnail
from lorgnette.types import PixelBox, PredictionRow

_ROW = TypeAdapter(PredictionRow)


def load_thumbnails(rows: Sequence[PredictionRow], max_side: int) -> Iterator[tuple[PIL.Image.Image, str]]:
    """Each image with its row's caption. Unreadable images are skipped."""
    for row in rows:
        for path in row.images:
            with contextlib.suppress(UnreadableImageError):
                yield load_thumbnail(path, max_side), row.caption


def write_predictions(path: Path, rows: Sequence[PredictionRow]) -> None:
    """Write one JSON object per line; images are paths. Boxes are written where there are some."""
    lines = (json.dumps(_build_record(row), ensure_ascii=False, default=str) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def build_box_record(box: PixelBox) -> dict[str, Any]:
    """A box as JSON, without what is not known of it."""
    record: dict[str, Any] = {"corners": box.corners}
    fields = {"label": box.label, "image": box.image}
    score = {} if box.score is None else {"score": box.score}
    return record | {name: value for name, value in fields.items() if value} | score


def _build_record(row: PredictionRow) -> dict[str, Any]:
    record = {name: value for name, value in dataclasses.asdict(row).items() if not name.endswith("_boxes")}
    for name, boxes in (("base_boxes", row.base_boxes), ("tuned_boxes", row.tuned_boxes)):
        if boxes:
            record[name] = list(map(build_box_record, boxes))
    if row.reference_boxes:
        record["reference_boxes"] = [list(map(build_box_record, boxes)) for boxes in row.reference_boxes]
    return record


def read_predictions(path: Path) -> list[PredictionRow]:
    """The rows; relative paths of images are relative to the file. Raises LorgnetteError for an unreadable file, and
    with the line number for an invalid line."""
    try:
        # Not splitlines(): it also splits at U+2028 and the like, and JSON does not escape these within a text.
        lines = decode_utf8(read_small_file(path, MAX_LINES_BYTES)).split("\n")
    except (OSError, LorgnetteError) as error:
        hint = "name a file of JSON lines in UTF-8"
        raise LorgnetteError(f"cannot read predictions: {error}", where=str(path), hint=hint) from error
    rows = [_parse_row(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    # Like the readers of data: absolute and normalized.
    return [
        dataclasses.replace(row, images=tuple(Path(os.path.abspath(path.parent / image)) for image in row.images))
        for row in rows
    ]


def _parse_row(line: str, where: str) -> PredictionRow:
    try:
        parse_json(line)  # names a key that is there twice, of which pydantic takes the last
        row = _ROW.validate_json(_rename_images(line), strict=True)
        _check_boxes(row)
        return row
    except LorgnetteError as error:
        raise LorgnetteError(f"not a prediction: {error.message}", where=where, hint=error.hint) from error
    except ValidationError as error:
        details = error.errors()
        missing = [
            str(detail["loc"][0]) for detail in details if (detail["type"], len(detail["loc"])) == ("missing", 1)
        ]
        if missing:
            message = f"not a prediction: it has no {', '.join(map(repr, missing))}"
            hint = "write all keys (docs/guides/boxes.md lists them), or run `lorgnette predict`"
            raise LorgnetteError(message, where=where, hint=hint) from error
        detail = details[0]
        field = "".join(f"{part}: " for part in detail["loc"])
        message, hint = f"not a prediction ({field}{detail['msg']})", "run `lorgnette predict` again"
        raise LorgnetteError(message, where=where, hint=hint) from error


def _check_boxes(row: PredictionRow) -> None:
    """Raise LorgnetteError for boxes that are none, or that belong to no reference."""
    hint = "run `lorgnette predict` again"
    for box in chain(row.base_boxes, row.tuned_boxes, *row.reference_boxes):
        if len(box.corners) not in (2, 4):
            raise LorgnetteError(f"a box has {len(box.corners)} numbers, not 4, or 2 for a point", hint=hint)
    if len(row.reference_boxes) not in (0, len(row.references)):
        message = f"boxes of {len(row.reference_boxes)} references, but {len(row.references)} references"
        raise LorgnetteError(message, hint=hint)


def _rename_images(line: str) -> str:
    """The row with today's name of its images. The first versions of lorgnette wrote `pictures`."""
    if '"pictures"' not in line:
        return line
    with contextlib.suppress(LorgnetteError):  # the caller says what is wrong with the line
        row = parse_json(line)
        if isinstance(row, dict) and "images" not in row:
            return json.dumps({"images" if name == "pictures" else name: value for name, value in row.items()})
    return line
