"""A file on a server, read where it is needed: every read beyond the last one is a request for that part of it.

Knows nothing about formats.
"""

import io

from lorgnette.hub import trouble
from lorgnette.hub.line import HttpClient
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.hub.trouble import SourceError, TransientError

_NUM_WINDOWS = 4


class RemoteFile(io.RawIOBase):
    """ahead: the fewest bytes asked for at once; reading on behind what was read asks for more each time, up to
    `most`. The last few parts are kept, because columns are read in turns."""

    def __init__(
        self,
        client: HttpClient,
        repository: Repository,
        file: RepositoryFile,
        *,
        read_ahead: int = 64 << 10,
        max_read_ahead: int = 4 << 20,
    ) -> None:
        super().__init__()
        self._client, self._file, self._headers = client, file, repository.get_headers(file)
        self._ahead, self._most, self._position, self._size = read_ahead, max_read_ahead, 0, file.size
        self._windows: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (
            0 if whence == io.SEEK_SET else self._position if whence == io.SEEK_CUR else self.size()
        )
        return self._position

    def size(self) -> int:
        if self._size is None:
            self._fetch_window(0, 1)
        assert self._size is not None
        return self._size

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self.size() - self._position)
        count = left if count is None or count < 0 else min(count, left)
        start, window = self._get_window(count, left)
        self._position += count
        return window[self._position - count - start : self._position - start]

    def _get_window(self, count: int, left: int) -> tuple[int, bytes]:
        """A part of the file that holds the next `count` bytes."""
        place = self._position
        grown = self._ahead
        for start, window in self._windows:
            if start <= place and place + count <= start + len(window):
                return start, window
            if start <= place <= start + len(window):
                grown = min(self._most, 2 * len(window))
        return self._fetch_window(place, min(max(count, grown, self._ahead), left)) if count else (place, b"")

    def readall(self) -> bytes:
        return self.read(-1)

    def _fetch_window(self, start: int, count: int) -> tuple[int, bytes]:
        taken = bytearray()

        def ask() -> None:
            if len(taken) >= count:
                return
            part = {"Range": f"bytes={start + len(taken)}-{start + count - 1}"}
            with self._client.stream(self._file.url, {**self._headers, **part}) as response:
                self._check_response(
                    response.status_code, response.headers.get("Content-Range", ""), start + len(taken)
                )
                for chunk in self._client.iter_chunks(response):
                    taken.extend(chunk)
            if len(taken) < count:
                raise TransientError(
                    "the connection was cut", where=trouble.redact_url(self._file.url), hint=trouble.RESUME_HINT
                )

        self._client.with_retries(self._file.url, ask, lambda: len(taken))
        self._windows = [*self._windows, (start, bytes(taken))][-_NUM_WINDOWS:]
        return self._windows[-1]

    def _check_response(self, status: int, said: str, start: int) -> None:
        """Is it the part asked for, of the file that was listed?"""
        place, total = trouble.redact_url(self._file.url), said.rpartition("/")[2]
        if status != 206 or not said.startswith(f"bytes {start}-"):
            raise SourceError("the server does not give parts of a file", where=place, hint="try another source")
        if self._size is None and total.isdecimal():
            self._size = int(total)
        if self._size is None or (total.isdecimal() and int(total) != self._size):
            raise SourceError("the file has changed while it was read", where=place, hint="start again")
