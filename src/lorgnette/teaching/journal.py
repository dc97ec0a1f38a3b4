"""journal.jsonl: the events of a `teach` run, appended one by one and on the disk before anything follows from them.

A last line without its end was cut off by a kill: it is no event, and is removed. Any other line that cannot be read is
an error, since all state is a function of all events. One process writes: it holds the run's lock.
"""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import open_no_follow
from lorgnette.io.parse import MAX_LINES_BYTES, read_small_file
from lorgnette.teaching.events import Event, parse_event


class Journal:
    """events: those on the disk, in order. Safe for several threads."""

    def __init__(self, path: Path, descriptor: int, events: Sequence[Event], size: int) -> None:
        self.path, self.events = path, list(events)
        self._descriptor, self._size = descriptor, size
        self._has_partial_write = False  # of a write that failed and could not be undone
        self._lock = Lock()

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read the journal, or begin one. Raises LorgnetteError that names the line which cannot be read."""
        try:
            descriptor = open_no_follow(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise _explain_write_error(path, error) from error
        try:
            content = read_small_file(path, MAX_LINES_BYTES)
            end = content.rfind(b"\n") + 1
            events = _parse_lines(content[:end], path)
            if end < len(content):
                os.ftruncate(descriptor, end)
            os.fsync(descriptor)
            _fsync_folder(path.parent)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise _explain_write_error(path, error) from error
            raise
        return cls(path, descriptor, events, end)

    def append(self, *events: Event) -> None:
        """Write events in one piece, and wait until the disk has them. All of them count, or none.

        Raises LorgnetteError if they cannot be written.
        """
        lines = "".join(f"{event.to_json()}\n" for event in events).encode()
        with self._lock:
            try:
                if os.fstat(self._descriptor).st_nlink == 0:
                    raise OSError(errno.ENOENT, "the file was deleted or replaced while it was in use")
                self._remove_partial_write()
                self._has_partial_write = True
                _write_all(self._descriptor, lines)
                os.fsync(self._descriptor)
            except OSError as error:
                with suppress(OSError):  # the next call tries again
                    self._remove_partial_write()
                raise _explain_write_error(self.path, error) from error
            self._has_partial_write = False
            self._size += len(lines)
            self.events += events

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def _remove_partial_write(self) -> None:
        if self._has_partial_write:
            os.ftruncate(self._descriptor, self._size)
        self._has_partial_write = False


def read_events(path: Path) -> list[Event]:
    """The events of a journal that another process may be writing. Raises LorgnetteError as `Journal.open`."""
    try:
        content = read_small_file(path, MAX_LINES_BYTES)
    except OSError as error:
        raise LorgnetteError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    return _parse_lines(content[: content.rfind(b"\n") + 1], path)


def _parse_lines(content: bytes, path: Path) -> list[Event]:
    events = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            events.append(parse_event(line))
        except LorgnetteError as error:
            where = f"{path}, line {number}"
            hint = "repair the line, or remove it; a copy of the file first"
            raise LorgnetteError(f"the journal cannot be read: {error.message}", where=where, hint=hint) from None
    return events


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _fsync_folder(folder: Path) -> None:
    """So that a new file keeps its name after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain_write_error(path: Path, error: OSError) -> LorgnetteError:
    hint = "free some space, or check the folder's permissions"
    return LorgnetteError(f"cannot write: {error.strerror or error}", where=str(path), hint=hint)
