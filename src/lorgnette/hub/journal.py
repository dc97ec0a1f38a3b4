"""What a collection has done so far, on disk: `OUT/.source/`. Written row by row, read again by the next start.

Knows nothing about hubs or formats. No token is ever written into it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import filelock

from lorgnette.errors import LorgnetteError
from lorgnette.hub.rows import Token
from lorgnette.io.atomic import atomic_write, write_json


@dataclass(frozen=True, slots=True)
class Noted:
    """A row as it was read. picture: its file's name in pictures/. url: where that comes from, "" if it came with the
    row. key: what tells two pictures of one name apart."""

    place: str
    captions: tuple[str, ...]
    picture: str
    token: Token
    url: str = ""
    key: str = ""
    number: int | None = None
    fault: str = ""
    hub: str = ""


class Journal:
    """notes: the rows so far. ended: the split has no more. revision: pinned by the first start. served: who gave
    each picture. fetched: bytes of all starts together."""

    def __init__(self, out: Path, request: Mapping[str, Any], key: str) -> None:
        self.out, self.folder, self.source = out, out / ".source", str(request["source"])
        self._request, self._state = dict(request), self.folder / "state.json"
        self._rows, self._served = self.folder / f"rows.{key}.jsonl", self.folder / "served.jsonl"
        state = self._read_state()
        self.revision, self.fetched = str(state.get("revision", "")), int(state.get("fetched", 0))
        self.notes: list[Noted] = []
        self.names: dict[str, str] = {}
        self.ended = False
        self.served = {str(picture): str(where) for picture, where in _lines(self._served)}
        self._read_rows()
        self._open: dict[Path, IO[str]] = {}

    @classmethod
    @contextmanager
    def open(cls, out: Path, request: Mapping[str, Any], key: str) -> Iterator["Journal"]:
        """Locked against a second process; raises LorgnetteError where `out` holds something else."""
        _take(out, request)
        lock = filelock.FileLock(out / ".source" / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LorgnetteError(
                "another lorgnette is downloading into this folder", where=str(out), hint="wait for it, or stop it"
            ) from None
        try:
            journal = cls(out, request, key)
            try:
                yield journal
            finally:
                journal.close()
        finally:
            lock.release()

    def note(self, noted: Noted) -> None:
        self.notes.append(noted)
        if noted.picture:
            self.names[noted.picture] = noted.key
        self._append(self._rows, asdict(noted))

    def end(self) -> None:
        self.ended = True
        self._append(self._rows, {"end": True})

    def serve(self, picture: str, where: str) -> None:
        self.served[picture] = where
        self._append(self._served, [picture, where])

    def pin(self, revision: str) -> None:
        self.revision = revision
        self._write_state()

    def add_fetched(self, count: int) -> None:
        self.fetched += count
        self._write_state()

    def close(self) -> None:
        for file in self._open.values():
            file.close()

    def _append(self, path: Path, value: Any) -> None:
        if path not in self._open:
            self._open[path] = path.open("a", encoding="utf-8")
        try:
            self._open[path].write(json.dumps(value, ensure_ascii=False) + "\n")
            self._open[path].flush()
        except OSError as error:
            raise LorgnetteError(
                f"cannot write: {error.strerror or error}", where=str(path), hint="free some space and start again"
            ) from error

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def _write_state(self) -> None:
        write_json(self._state, {"request": self._request, "revision": self.revision, "fetched": self.fetched})

    def _read_rows(self) -> None:
        """The rows up to a line that a kill has torn, or to a picture that is gone; what follows is read anew."""
        whole = True
        for line in _lines(self._rows):
            if line.get("end"):
                self.ended = True
                continue
            noted = Noted(**{**line, "captions": tuple(line["captions"])})
            if noted.picture and not noted.url and not (self.out / "pictures" / noted.picture).is_file():
                whole = self.ended = False
                break
            self.notes.append(noted)
            self.names[noted.picture] = noted.key
        if self._rows.is_file() and not (whole and self._rows.read_bytes()[-1:] in (b"", b"\n")):
            with atomic_write(self._rows) as beside, beside.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(noted), ensure_ascii=False) + "\n" for noted in self.notes)


def _take(out: Path, request: Mapping[str, Any]) -> None:
    """The folder is this request's: it was before, or nothing has been collected into it yet."""
    state = out / ".source" / "state.json"
    held: dict[str, Any] = {}
    try:
        held = dict(json.loads(state.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        if (out / "captions.csv").exists() or (out / "pictures").exists():
            raise LorgnetteError(
                "the folder holds captions or pictures that are not from here",
                where=str(out),
                hint="choose another folder",
            ) from None
    if held.get("request") == dict(request):
        return
    if any(rows.stat().st_size for rows in (out / ".source").glob("rows.*.jsonl")):
        raise LorgnetteError(
            f"the folder holds {_source(held)}, collected with other settings",
            where=str(out),
            hint="choose another folder, or remove this one",
        )
    (out / ".source").mkdir(parents=True, exist_ok=True)
    write_json(state, {"request": dict(request), "revision": "", "fetched": 0})


def _source(state: Mapping[str, Any]) -> str:
    request = state.get("request")
    return str(request.get("source")) if isinstance(request, dict) else "something else"


def _lines(path: Path) -> Iterator[Any]:
    """JSON lines; a line that a kill has torn ends them."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                yield json.loads(line)
    except (FileNotFoundError, ValueError):
        return
