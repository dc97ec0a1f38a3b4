"""A file on a server, read where it is needed: every read beyond the last one is a request for that part of it.

Knows nothing about formats.
"""

import io

from lorgnette.hub import trouble
from lorgnette.hub.line import Line
from lorgnette.hub.repository import Listed, Repository
from lorgnette.hub.trouble import PassingError, SourceError

_WINDOWS = 4


class Ranged(io.RawIOBase):
    """ahead: the fewest bytes asked for at once; reading on behind what was read asks for more each time, up to
    `most`. The last few parts are kept, because columns are read in turns."""

    def __init__(
        self, line: Line, repository: Repository, file: Listed, *, ahead: int = 64 << 10, most: int = 4 << 20
    ) -> None:
        super().__init__()
        self._line, self._file, self._headers = line, file, repository.sent(file)
        self._ahead, self._most, self._place, self._size = ahead, most, 0, file.size
        self._windows: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0 if whence == io.SEEK_SET else self._place if whence == io.SEEK_CUR else self.size())
        return self._place

    def size(self) -> int:
        if self._size is None:
            self._fill(0, 1)
        assert self._size is not None
        return self._size

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self.size() - self._place)
        count = left if count is None or count < 0 else min(count, left)
        start, window = self._window(count, left)
        self._place += count
        return window[self._place - count - start : self._place - start]

    def _window(self, count: int, left: int) -> tuple[int, bytes]:
        """A part of the file that holds the next `count` bytes."""
        place = self._place
        grown = self._ahead
        for start, window in self._windows:
            if start <= place and place + count <= start + len(window):
                return start, window
            if start <= place <= start + len(window):
                grown = min(self._most, 2 * len(window))
        return self._fill(place, min(max(count, grown, self._ahead), left)) if count else (place, b"")

    def readall(self) -> bytes:
        return self.read(-1)

    def _fill(self, start: int, count: int) -> tuple[int, bytes]:
        taken = bytearray()

        def ask() -> None:
            if len(taken) >= count:
                return
            part = {"Range": f"bytes={start + len(taken)}-{start + count - 1}"}
            with self._line.answer(self._file.url, {**self._headers, **part}) as response:
                self._fits(response.status_code, response.headers.get("Content-Range", ""), start + len(taken))
                for chunk in self._line.chunks(response):
                    taken.extend(chunk)
            if len(taken) < count:
                raise PassingError("the connection was cut", where=trouble.shown(self._file.url), remedy=trouble.KEPT)

        self._line.persist(self._file.url, ask, lambda: len(taken))
        self._windows = [*self._windows, (start, bytes(taken))][-_WINDOWS:]
        return self._windows[-1]

    def _fits(self, status: int, said: str, start: int) -> None:
        """Is it the part asked for, of the file that was listed?"""
        place, total = trouble.shown(self._file.url), said.rpartition("/")[2]
        if status != 206 or not said.startswith(f"bytes {start}-"):
            raise SourceError("the server does not give parts of a file", where=place, remedy="try another source")
        if self._size is None and total.isdecimal():
            self._size = int(total)
        if self._size is None or (total.isdecimal() and int(total) != self._size):
            raise SourceError("the file has changed while it was read", where=place, remedy="start again")
