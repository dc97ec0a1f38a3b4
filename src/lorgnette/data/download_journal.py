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

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_write, open_no_follow, write_json
from lorgnette.io.parse import parse_json, read_config

DATA_FILE, IMAGE_FOLDER = "data.jsonl", "images"


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A row as it was read.

    where: its file and number. file, position: where reading continues after it. records: its examples, as they go into
    data.jsonl. images: file name → [URL, hub whose token it needs, COCO id], URL "" for an image that came with the
    row. message, hint: why the row cannot be used ("": it can). unread_keys: keys with content that
    is not read.
    """

    where: str
    file: int
    position: list[int]
    records: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, list[Any]] = field(default_factory=dict)
    message: str = ""
    hint: str = ""
    unread_keys: list[str] = field(default_factory=list)


class Journal:
    """rows: the rows so far. is_complete: the split has no more. sources: where each image came from. num_bytes:
    fetched by all starts together."""

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.folder, self.image_folder = out, out / ".source", out / IMAGE_FOLDER
        self._state = _read_state(self.folder)
        self._rows_file, self._sources_file = self.folder / f"rows.{key}.jsonl", self.folder / "served.jsonl"
        self.source: str = self._state["request"]["source"]
        self.sources: dict[str, str] = dict(_read_lines(self._sources_file))
        # The rows up to a line cut off by a kill, or to an embedded image that is gone; the rest is read again.
        lines = list(_read_lines(self._rows_file))
        self.is_complete = bool(lines and lines[-1].get("end"))
        self.rows: list[JournalRow] = []
        for line in lines[: len(lines) - self.is_complete]:
            row = JournalRow(**line)
            embedded = [name for name, (url, *_) in row.images.items() if not url]
            if not all((self.image_folder / name).is_file() for name in embedded):
                self.is_complete = False
                break
            self.rows.append(row)
        content = self._rows_file.read_bytes() if self._rows_file.is_file() else b""
        if content[-1:] not in (b"", b"\n") or content.count(b"\n") != len(self.rows) + self.is_complete:
            with atomic_write(self._rows_file) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in self.rows)

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: Mapping[str, Any], key: str) -> Iterator["Journal"]:
        """Locked against a second process. Raises LorgnetteError if `out` holds something else.

        key: the same for choices of rows of which one is the beginning of the other.
        """
        import filelock  # not for those who need the names of the files

        folder, where = out / ".source", str(out)
        state = _read_state(folder)
        if not state and ((out / DATA_FILE).exists() or (out / IMAGE_FOLDER).exists()):
            message = f"the folder has {DATA_FILE} or {IMAGE_FOLDER}/ that were not downloaded by this command"
            raise LorgnetteError(message, where=where, hint="choose another folder")
        if (known := state.get("request")) != dict(request):
            if any(rows.stat().st_size for rows in folder.glob("rows.*.jsonl")):
                source = known.get("source") if isinstance(known, dict) else "another data set"
                message = f"the folder holds {source}, downloaded with other settings"
                raise LorgnetteError(message, where=where, hint="choose another folder, or remove this one")
            write_json(folder / "state.json", {"request": dict(request), "revision": "", "num_bytes": 0})
        try:
            with filelock.FileLock(folder / "lock", timeout=0):
                yield cls(out, key)
        except filelock.Timeout:
            message = "another lorgnette is downloading into this folder"
            raise LorgnetteError(message, where=where, hint="wait for it, or stop it") from None

    @property
    def revision(self) -> str:
        return str(self._state["revision"])

    @property
    def num_bytes(self) -> int:
        return int(self._state["num_bytes"])

    def update_state(self, **values: str | int) -> None:
        """Write the pinned `revision`, or the `num_bytes` fetched so far."""
        self._state |= values
        write_json(self.folder / "state.json", self._state)

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


def list_image_names(folder: Path) -> set[str]:
    """The images that the rows of all journals in `OUT/.source` name."""
    lines = (line for file in folder.glob("rows.*.jsonl") for line in _read_lines(file))
    return {name for line in lines if isinstance(line, dict) for name in line.get("images", ())}


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return read_config(folder / "state.json", "remove the folder")
    except (OSError, LorgnetteError):
        return {}


def _append_line(path: Path, value: Any) -> None:
    try:
        with open(path, "a", encoding="utf-8", opener=open_no_follow) as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as error:
        message = f"cannot write: {error.strerror or error}"
        raise LorgnetteError(message, where=str(path), hint="free some space and start again") from error


def _read_lines(path: Path) -> Iterator[Any]:
    """JSON lines, up to one that a kill cut off."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                yield parse_json(line)
    except (FileNotFoundError, UnicodeDecodeError, LorgnetteError):
        return
