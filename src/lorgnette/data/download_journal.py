"""What the download of a data set has done so far, on disk in `OUT/.source/`: written row by row, read by a restart.

    state.json       the request, the pinned revision, bytes fetched so far
    rows.KEY.jsonl   the chosen rows in order, each with the position after it
    served.jsonl     where each image came from

Knows nothing about hubs or data formats. No token is ever written.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_write, write_json

DATA_FILE, IMAGE_FOLDER = "data.jsonl", "images"


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A row as it was read.

    where: its file and number. file, position: where reading continues after it. records: its examples, as they go into
    data.jsonl. images: file name → [URL, hub whose token it needs, COCO id], URL "" for an image that came with the
    row. message, hint: why the row cannot be used ("": it can).
    """

    where: str
    file: int
    position: list[int]
    records: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, list[Any]] = field(default_factory=dict)
    message: str = ""
    hint: str = ""


class Journal:
    """rows: the rows so far. is_complete: the split has no more. sources: where each image came from. num_bytes:
    fetched by all starts together."""

    def __init__(self, out: Path, request: Mapping[str, Any], key: str) -> None:
        self.out, self.folder, self.source = out, out / ".source", str(request["source"])
        self._request, self._state_file = dict(request), self.folder / "state.json"
        self._rows_file, self._sources_file = self.folder / f"rows.{key}.jsonl", self.folder / "served.jsonl"
        state = _read_state(self._state_file)
        self.revision, self.num_bytes = str(state.get("revision", "")), int(state.get("num_bytes", 0))
        self.rows: list[JournalRow] = []
        self.is_complete = False
        self.sources = {str(name): str(source) for name, source in _read_lines(self._sources_file)}
        self._read_rows()

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: Mapping[str, Any], key: str) -> Iterator["Journal"]:
        """Locked against a second process. Raises LorgnetteError if `out` holds something else.

        key: the same for choices of rows of which one is the beginning of the other.
        """
        _claim_folder(out, request)
        lock = filelock.FileLock(out / ".source" / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LorgnetteError(
                "another lorgnette is downloading into this folder", where=str(out), hint="wait for it, or stop it"
            ) from None
        try:
            yield cls(out, request, key)
        finally:
            lock.release()

    def add_row(self, row: JournalRow) -> None:
        self.rows.append(row)
        _append_line(self._rows_file, asdict(row))

    def complete(self) -> None:
        """The split has no more rows."""
        self.is_complete = True
        _append_line(self._rows_file, {"end": True})

    def add_source(self, image: str, source: str) -> None:
        if self.sources.get(image) != source:
            self.sources[image] = source
            _append_line(self._sources_file, [image, source])

    def pin_revision(self, revision: str) -> None:
        self.revision = revision
        self._write_state()

    def add_bytes(self, count: int) -> None:
        self.num_bytes += count
        self._write_state()

    def _write_state(self) -> None:
        state = {"request": self._request, "revision": self.revision, "num_bytes": self.num_bytes}
        write_json(self._state_file, state)

    def _read_rows(self) -> None:
        """The rows up to a line cut off by a kill, or to an image that is gone; the rest is read again."""
        is_whole = True
        for line in _read_lines(self._rows_file):
            if line.get("end"):
                self.is_complete = True
                break
            row = JournalRow(**line)
            embedded = [name for name, (url, *_) in row.images.items() if not url]
            if not all((self.out / IMAGE_FOLDER / name).is_file() for name in embedded):
                is_whole = False
                break
            self.rows.append(row)
        if self._rows_file.is_file() and not (is_whole and self._rows_file.read_bytes()[-1:] in (b"", b"\n")):
            with atomic_write(self._rows_file) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)


def _claim_folder(out: Path, request: Mapping[str, Any]) -> None:
    """The folder is this request's already, or nothing has been downloaded into it yet."""
    state_file = out / ".source" / "state.json"
    state = _read_state(state_file)
    if not state and ((out / DATA_FILE).exists() or (out / IMAGE_FOLDER).exists()):
        raise LorgnetteError(
            f"the folder has {DATA_FILE} or {IMAGE_FOLDER}/ that were not downloaded by this command",
            where=str(out),
            hint="choose another folder",
        )
    if state.get("request") == dict(request):
        return
    if any(rows.stat().st_size for rows in (out / ".source").glob("rows.*.jsonl")):
        known = state.get("request")
        source = known.get("source") if isinstance(known, dict) else "another data set"
        raise LorgnetteError(
            f"the folder holds {source}, downloaded with other settings",
            where=str(out),
            hint="choose another folder, or remove this one",
        )
    (out / ".source").mkdir(parents=True, exist_ok=True)
    write_json(state_file, {"request": dict(request), "revision": "", "num_bytes": 0})


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _append_line(path: Path, value: Any) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as error:
        raise LorgnetteError(
            f"cannot write: {error.strerror or error}", where=str(path), hint="free some space and start again"
        ) from error


def _read_lines(path: Path) -> Iterator[Any]:
    """JSON lines, up to one that a kill cut off."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                yield json.loads(line)
    except (FileNotFoundError, ValueError):
        return
