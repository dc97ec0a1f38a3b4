"""A file on a server, read where it is needed: every read beyond the last one is a request for that part of it.

Knows nothing about formats.
"""

import io

from lorgnette.hub import trouble
from lorgnette.hub.line import Line
from lorgnette.hub.repository import Listed, Repository
from lorgnette.hub.trouble import PassingError, SourceError


class Ranged(io.RawIOBase):
    """ahead: the fewest bytes asked for at once."""

    def __init__(self, line: Line, repository: Repository, file: Listed, *, ahead: int = 64 << 10) -> None:
        super().__init__()
        self._line, self._file, self._headers = line, file, repository.sent(file)
        self._ahead, self._place = ahead, 0
        self._start, self._window = 0, b""
        self._size = file.size

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
        first = self._place - self._start
        if count and not 0 <= first <= first + count <= len(self._window):
            self._fill(self._place, min(max(count, self._ahead), left))
            first = 0
        self._place += count
        return self._window[first : first + count]

    def readall(self) -> bytes:
        return self.read(-1)

    def _fill(self, start: int, count: int) -> None:
        taken = bytearray()

        def ask() -> None:
            part = {"Range": f"bytes={start + len(taken)}-{start + count - 1}"}
            with self._line.answer(self._file.url, {**self._headers, **part}) as response:
                self._fits(response.status_code, response.headers.get("Content-Range", ""), start + len(taken))
                for chunk in self._line.chunks(response):
                    taken.extend(chunk)
            if len(taken) < count:
                raise PassingError("the connection was cut", where=trouble.shown(self._file.url), remedy=trouble.KEPT)

        self._line.persist(self._file.url, ask, lambda: len(taken))
        self._start, self._window = start, bytes(taken)

    def _fits(self, status: int, said: str, start: int) -> None:
        """Is it the part asked for, of the file that was listed?"""
        place, total = trouble.shown(self._file.url), said.rpartition("/")[2]
        if status != 206 or not said.startswith(f"bytes {start}-"):
            raise SourceError("the server does not give parts of a file", where=place, remedy="try another source")
        if self._size is None and total.isdecimal():
            self._size = int(total)
        if self._size is None or (total.isdecimal() and int(total) != self._size):
            raise SourceError("the file has changed while it was read", where=place, remedy="start again")
