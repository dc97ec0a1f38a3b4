"""The line to the outside: one HTTP client, with patience.

Proxies (HTTPS_PROXY, NO_PROXY), SSL_CERT_FILE and REQUESTS_CA_BUNDLE are honoured, redirects followed (a token is not
carried to another host). Knows nothing about files; every failure comes out as a sentence of `trouble`.
"""

import json
import os
import random
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import httpx2

from lorgnette.errors import LorgnetteError
from lorgnette.hub import trouble
from lorgnette.hub.trouble import PassingError, SourceError

T = TypeVar("T")
LARGEST_ANSWER = 64 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to put up with a server; all in seconds but `attempts`, tries that bring no byte further."""

    attempts: int = 5
    connect: float = 15.0
    silence: float = 30.0
    pause: float = 0.5
    longest_pause: float = 30.0
    longest_asked: float = 120.0


class Line:
    """Shared by all threads of a download. `fetched` counts the bytes of all answers, `requests` the questions."""

    def __init__(self, *, workers: int = 8, patience: Patience | None = None) -> None:
        self.workers, self.patience = workers, patience or Patience()
        self.stopped = threading.Event()
        self.fetched, self.requests = 0, 0
        self._lock = threading.Lock()
        self._answered: set[str] = set()
        self._mute: dict[str, SourceError] = {}
        self._client = httpx2.Client(
            verify=_trust(),
            follow_redirects=True,
            timeout=httpx2.Timeout(self.patience.silence, connect=self.patience.connect),
            limits=httpx2.Limits(max_connections=workers + 2, max_keepalive_connections=workers + 2),
            headers={"User-Agent": "lorgnette", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> "Line":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._client.close()

    @contextmanager
    def answer(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A 200 or 206 whose body is still to be read. Raises SourceError, PassingError where another try may help."""
        if (mute := self._mute.get(_host(url))) is not None:
            raise SourceError(mute.what, where=trouble.shown(url), remedy=mute.remedy)
        with self._lock:
            self.requests += 1
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                with self._lock:
                    self._answered.add(_host(url))
                if response.status_code not in (200, 206):
                    raise trouble.of_status(response, url)
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise trouble.of_transport(error, url) from error

    def chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body, counted, until somebody stops the line."""
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        for chunk in response.iter_raw() if plain else response.iter_bytes():
            self.check()
            with self._lock:
                self.fetched += len(chunk)
            yield chunk

    def check(self) -> None:
        if self.stopped.is_set():
            raise LorgnetteError("the download was stopped", remedy="start again: what is already there is kept")

    def persist(self, url: str, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
        """Try again with growing pauses while failures may pass. Bytes that are `reached` for the first time make
        earlier failures forgotten. A host that never answered anybody is not asked again."""
        failed, best = 0, reached()
        while True:
            self.check()
            try:
                return attempt()
            except PassingError as error:
                if reached() > best:
                    failed, best = 0, reached()
                failed += 1
                if failed >= (min(3, self.patience.attempts) if error.unreachable else self.patience.attempts):
                    self._give_up(url, error)
                    raise
                self._rest(failed, error)

    def body(self, url: str, headers: Mapping[str, str], *, largest: int = LARGEST_ANSWER) -> bytes:
        """A small answer as a whole."""

        def ask() -> bytes:
            taken = bytearray()
            with self.answer(url, headers) as response:
                for chunk in self.chunks(response):
                    taken += chunk
                    if len(taken) > largest:
                        raise SourceError(
                            f"the answer is longer than {largest >> 20} MiB",
                            where=trouble.shown(url),
                            remedy="report it",
                        )
            return bytes(taken)

        return self.persist(url, ask)

    def json(self, url: str, headers: Mapping[str, str]) -> Any:
        text = self.body(url, headers)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            page = "a web page" if text.lstrip()[:1] == b"<" else "no JSON"
            raise SourceError(
                f"the hub answered with {page}",
                where=trouble.shown(url),
                remedy="a login page of your network? check the proxy and the hub's address",
            ) from error

    def _give_up(self, url: str, error: PassingError) -> None:
        with self._lock:
            if error.unreachable and _host(url) not in self._answered:
                self._mute[_host(url)] = error

    def _rest(self, failed: int, error: PassingError) -> None:
        if error.wait is not None and error.wait > self.patience.longest_asked:
            raise error
        growing = min(self.patience.longest_pause, self.patience.pause * 2 ** (failed - 1)) * random.uniform(0.5, 1.5)
        self.stopped.wait(growing if error.wait is None else max(error.wait, growing * 0.1))


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _trust() -> ssl.SSLContext | bool:
    """The certificates to trust: the file or folder that the usual variables name, else the client's own."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"):
        if not (path := os.environ.get(name)):
            continue
        try:
            is_folder = os.path.isdir(path)
            return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
        except OSError as error:
            raise LorgnetteError(
                f"{name} names certificates that cannot be read: {error.strerror or error}",
                where=path,
                remedy=f"correct {name}, or unset it",
            ) from error
    return True
