"""The run's log in JSON lines, readable after a `kill -9`.

    {"kind": "train", "step": 10, "epoch": 0.3, "loss": 1.9, "learning_rate": 9e-05, "grad_norm": 2.1, …}
    {"kind": "eval", "step": 10, "eval_loss": 1.7}
    {"kind": "event", "text": "checkpoint step-000010", "level": "info"}
    {"kind": "skipped", "source": "captions.csv", "row": 7, "message": …}

JSON has no number for NaN and infinity: they are written as the texts "nan", "inf" and "-inf", and `parse_number` turns
a field back into a float. Knows nothing about trackers or pages, nor what a record means beyond `step`.
"""

import json
import math
import numbers
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_write, open_no_follow
from lorgnette.io.parse import MAX_LINES_BYTES, check_is_file, parse_json, read_small_file

Record = dict[str, Any]
CURVES = {
    "loss": ("train", "loss"),
    "eval loss": ("eval", "eval_loss"),
    "learning rate": ("train", "learning_rate"),
    "gradient norm": ("train", "grad_norm"),
}
"""Curve → kind and field of its log records."""


class RunLog:
    """Appends records to `path`. A record survives the process as soon as `write` returns. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _repair_tail(path)
            self._file = open(path, "a", encoding="utf-8", opener=open_no_follow)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _build_write_error(path, error) from error

    @classmethod
    def resume(cls, path: Path, step: int | None, *, repeated_kinds: Collection[str] = ()) -> "RunLog":
        """Open the log of a run that continues from the checkpoint after `step`; None: from its beginning.

        Records after `step` and of the kinds that will be written again are dropped. Others without a step stay.
        """
        if path.exists():
            records = [] if step is None else read_log(path)
            records = [record for record in records if _is_kept(record, step or 0, repeated_kinds)]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(map(_format_record, records)), encoding="utf-8")
        return cls(path)

    def write(self, record: Mapping[str, Any]) -> None:
        line = _format_record(record)
        try:
            with self._lock:
                self._file.write(line)
                self._file.flush()
        except OSError as error:
            raise _build_write_error(self.path, error) from error

    def close(self) -> None:
        try:
            self._file.close()  # tries once more to write what a full disk refused
        except OSError as error:
            raise _build_write_error(self.path, error) from error

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(path: Path) -> list[Record]:
    """All records, without an incomplete last line. Raises LorgnetteError for any other line that is not a record."""
    try:
        lines = read_small_file(path, MAX_LINES_BYTES).split(b"\n")
    except (OSError, LorgnetteError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LorgnetteError(f"log cannot be read: {reason}", where=str(path)) from error
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse_record(line)
        if record is not None:
            records.append(record)
        elif line.strip() and number < len(lines):
            where, hint = f"{path}, line {number}", "remove that line, or start a new run"
            raise LorgnetteError("log line is not a JSON object", where=where, hint=hint)
    return records


def parse_number(value: object) -> float | None:
    """The number of a field, including the texts "nan", "inf" and "-inf"; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number or value in ("nan", "inf", "-inf") else None  # type: ignore[arg-type]


def select_series(records: list[Record], kind: str, name: str) -> list[tuple[float, float]]:
    """The curve of a field: (step, value) of all records of this kind."""
    selected = [record for record in records if record.get("kind") == kind]
    pairs = [(parse_number(record.get("step")), parse_number(record.get(name))) for record in selected]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _parse_record(line: bytes) -> Record | None:
    try:
        value = parse_json(line)
    except LorgnetteError:
        return None
    return value if isinstance(value, dict) else None


def _format_record(record: Mapping[str, Any]) -> str:
    return json.dumps(_to_json(record), ensure_ascii=False, allow_nan=False) + "\n"


def _to_json(value: Any) -> Any:
    """The value in JSON's types: numpy numbers as Python's, paths and non-finite numbers as text."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        real = float(value)
        return real if math.isfinite(real) else str(real)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a log record cannot hold a {type(value).__name__}")


def _is_kept(record: Record, step: int, repeated_kinds: Collection[str]) -> bool:
    is_later = (parse_number(record.get("step")) or 0) > step
    return not is_later and record.get("kind") not in repeated_kinds


def _repair_tail(path: Path) -> None:
    """Complete or remove an incomplete last line, so that the next record starts on its own line."""
    if not path.exists():
        return
    check_is_file(path)
    with open(path, "rb+", opener=open_no_follow) as file:
        content = file.read()
        end_of_lines = content.rfind(b"\n") + 1
        tail = content[end_of_lines:]
        if _parse_record(tail) is not None:  # only the line feed is missing
            file.write(b"\n")
        else:
            file.truncate(end_of_lines)


def _build_write_error(path: Path, error: OSError) -> LorgnetteError:
    hint = "free some space, then resume: lorgnette train --resume RUN"
    return LorgnetteError(f"log cannot be written: {error.strerror or error}", where=str(path), hint=hint)
