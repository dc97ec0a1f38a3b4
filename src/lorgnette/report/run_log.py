"""The run's log: one JSON object a line, whole lines only, readable after a `kill -9`.

    {"kind": "train", "step": 10, "epoch": 0.3, "loss": 1.9, "lr": 9e-05, "grad_norm": 2.1, "tokens_per_s": 5100, …}
    {"kind": "eval", "step": 10, "eval_loss": 1.7}
    {"kind": "event", "text": "checkpoint saved", "level": "info"}
    {"kind": "skipped", "source": "captions.csv", "row": 7, "what": …, "remedy": …}

JSON has no name for a number that is not finite, so such a number stands as the text "nan", "inf" or "-inf";
`number` turns a field back into a float. Knows nothing about trackers or pages, nor what a record means beyond `step`.
"""

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_write

Record = dict[str, Any]


class RunLog:
    """Appends records to `path`, each on the disk's side of the process before `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _repair_tail(path)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _build_write_error(path, error) from error

    @classmethod
    def resume(cls, path: Path, step: int) -> "RunLog":
        """Forget what was logged after `step` (it will be done again) and go on. Records without a step stay."""
        if path.exists():
            kept = [record for record in read_log(path) if record.get("step", step) <= step]
            with atomic_write(path) as beside:
                beside.write_text("".join(map(_format_record, kept)), encoding="utf-8")
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
            self._file.close()  # what a full disk did not take is tried once more here
        except OSError as error:
            raise _build_write_error(self.path, error) from error

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_log(path: Path) -> list[Record]:
    """All records. A half-written last line is left out; anything else that is no record is an error."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LorgnetteError(f"log cannot be read: {error.strerror or error}", where=str(path)) from error
    records = []
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_record(line)
        if record is None and count < len(lines):
            raise LorgnetteError(
                "log holds a line that is no record",
                where=f"{path}, line {count}",
                hint="remove that line, or start a new run",
            )
        if record is not None:
            records.append(record)
    return records


def parse_number(value: object) -> float | None:
    """A field's number, "nan" and "inf" included; None where the field holds no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else None


def select_series(records: list[Record], kind: str, name: str) -> list[tuple[float, float]]:
    """(step, value) of the field `name` in all records of this kind: a curve."""
    pairs = (
        (parse_number(record.get("step")), parse_number(record.get(name)))
        for record in records
        if record.get("kind") == kind
    )
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _parse_record(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _format_record(record: Mapping[str, Any]) -> str:
    return json.dumps(_to_json(record), ensure_ascii=False, allow_nan=False) + "\n"


def _to_json(value: Any) -> Any:
    """The same in JSON's own types: numpy's numbers as Python's, paths as text, non-finite numbers as text."""
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


def _repair_tail(path: Path) -> None:
    """Cut a half-written last line off, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        tail = content[whole:]
        if not tail:
            return
        if _parse_record(tail) is not None:  # only its line feed was lost
            file.write(b"\n")
        else:
            file.truncate(whole)


def _build_write_error(path: Path, error: OSError) -> LorgnetteError:
    return LorgnetteError(
        f"log cannot be written: {error.strerror or error}", where=str(path), hint="free some space, then --resume"
    )
