"""A file on a server as a Python file object: each read beyond the last one requests that range of bytes.

Knows nothing about formats.
"""

import io

from lorgnette.errors import SourceError
from lorgnette.hub.http import RESUME_HINT, HttpClient, TransientError, redact_url
from lorgnette.hub.repository import Repository, RepositoryFile

_NUM_WINDOWS = 4


class RemoteFile(io.RawIOBase):
    """read_ahead: the fewest bytes per request; sequential reads double them up to max_read_ahead.

    The last few windows are cached, because the columns of a table are read in turns.
    """

    def __init__(
        self, client: HttpClient, repository: Repository, file: RepositoryFile, read_ahead: int, max_read_ahead: int
    ) -> None:
        super().__init__()
        self._client, self._file, self._headers = client, file, repository.get_headers(file)
        self._read_ahead, self._max_read_ahead = read_ahead, max_read_ahead
        self._position, self._size = 0, file.size
        self._windows: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = 0 if whence == io.SEEK_SET else self._position if whence == io.SEEK_CUR else self.size()
        self._position = offset + base
        return self._position

    def size(self) -> int:
        if self._size is None:
            self._fetch_window(0, 1)
        assert self._size is not None
        return self._size

    def read(self, count: int | None = -1) -> bytes:
        remaining = max(0, self.size() - self._position)
        count = remaining if count is None or count < 0 else min(count, remaining)
        start, window = self._get_window(count, remaining)
        offset = self._position - start
        self._position += count
        return window[offset : offset + count]

    def _get_window(self, count: int, remaining: int) -> tuple[int, bytes]:
        """(start, bytes) of a part of the file that has the next `count` bytes."""
        position, read_ahead = self._position, self._read_ahead
        for start, window in self._windows:
            if start <= position and position + count <= start + len(window):
                return start, window
            if start <= position <= start + len(window):
                read_ahead = min(self._max_read_ahead, 2 * len(window))
        size = min(max(count, read_ahead, self._read_ahead), remaining)
        return self._fetch_window(position, size) if count else (position, b"")

    def readall(self) -> bytes:
        return self.read(-1)

    def _fetch_window(self, start: int, count: int) -> tuple[int, bytes]:
        content = bytearray()

        def request() -> None:
            if len(content) >= count:
                return
            range_ = {"Range": f"bytes={start + len(content)}-{start + count - 1}"}
            with self._client.stream(self._file.url, {**self._headers, **range_}) as response:
                content_range = response.headers.get("Content-Range", "")
                self._check_response(response.status_code, content_range, start + len(content))
                for chunk in self._client.iter_chunks(response):
                    content.extend(chunk)
            if len(content) < count:
                raise TransientError("connection lost", where=redact_url(self._file.url), hint=RESUME_HINT)

        self._client.with_retries(self._file.url, request, lambda: len(content))
        self._windows = [*self._windows, (start, bytes(content))][-_NUM_WINDOWS:]
        return self._windows[-1]

    def _check_response(self, status: int, content_range: str, start: int) -> None:
        """Raise SourceError unless it is the requested range of the listed file."""
        where, total = redact_url(self._file.url), content_range.rpartition("/")[2]
        if status != 206 or not content_range.startswith(f"bytes {start}-"):
            raise SourceError("the server does not support range requests", where=where, hint="try another source")
        if self._size is None and total.isdecimal():
            self._size = int(total)
        if self._size is None or (total.isdecimal() and int(total) != self._size):
            raise SourceError("the file has changed while it was read", where=where, hint="start again")
