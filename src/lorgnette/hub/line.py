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
from lorgnette.hub.trouble import SourceError, TransientError

T = TypeVar("T")
MAX_RESPONSE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to put up with a server; all in seconds but `attempts`, tries that bring no byte further."""

    max_attempts: int = 5
    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    initial_pause: float = 0.5
    max_pause: float = 30.0
    max_retry_after: float = 120.0


class HttpClient:
    """Shared by all threads of a download. `fetched` counts the bytes of all answers, `requests` the questions."""

    def __init__(self, *, num_workers: int = 8, retry_policy: RetryPolicy | None = None) -> None:
        self.num_workers, self.retry_policy = num_workers, retry_policy or RetryPolicy()
        self.stopped = threading.Event()
        self.num_bytes, self.num_requests = 0, 0
        self._lock = threading.Lock()
        self._responsive_hosts: set[str] = set()
        self._unreachable_hosts: dict[str, SourceError] = {}
        self._client = httpx2.Client(
            verify=_load_certificates(),
            follow_redirects=True,
            timeout=httpx2.Timeout(self.retry_policy.read_timeout, connect=self.retry_policy.connect_timeout),
            limits=httpx2.Limits(max_connections=num_workers + 2, max_keepalive_connections=num_workers + 2),
            headers={"User-Agent": "lorgnette", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> "HttpClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._client.close()

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A 200 or 206 whose body is still to be read. Raises SourceError, TransientError where another try may help."""
        if (mute := self._unreachable_hosts.get(_parse_host(url))) is not None:
            raise SourceError(mute.message, where=trouble.redact_url(url), hint=mute.hint)
        with self._lock:
            self.num_requests += 1
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                with self._lock:
                    self._responsive_hosts.add(_parse_host(url))
                if response.status_code not in (200, 206):
                    raise trouble.explain_status(response, url)
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise trouble.explain_transport_error(error, url) from error

    def iter_chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body, counted, until somebody stops the line."""
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        for chunk in response.iter_raw() if plain else response.iter_bytes():
            self.check_stopped()
            with self._lock:
                self.num_bytes += len(chunk)
            yield chunk

    def check_stopped(self) -> None:
        if self.stopped.is_set():
            raise LorgnetteError("the download was stopped", hint="start again: what is already there is kept")

    def with_retries(self, url: str, attempt: Callable[[], T], get_progress: Callable[[], int] = lambda: 0) -> T:
        """Try again with growing pauses while failures may pass. Bytes that are `reached` for the first time make
        earlier failures forgotten. A host that never answered anybody is not asked again."""
        failed, best = 0, get_progress()
        while True:
            self.check_stopped()
            try:
                return attempt()
            except TransientError as error:
                if get_progress() > best:
                    failed, best = 0, get_progress()
                failed += 1
                if failed >= (
                    min(3, self.retry_policy.max_attempts) if error.is_unreachable else self.retry_policy.max_attempts
                ):
                    self._record_unreachable(url, error)
                    raise
                self._wait_before_retry(failed, error)

    def get_bytes(self, url: str, headers: Mapping[str, str], *, max_bytes: int = MAX_RESPONSE_BYTES) -> bytes:
        """A small answer as a whole."""

        def ask() -> bytes:
            taken = bytearray()
            with self.stream(url, headers) as response:
                for chunk in self.iter_chunks(response):
                    taken += chunk
                    if len(taken) > max_bytes:
                        raise SourceError(
                            f"the answer is longer than {max_bytes >> 20} MiB",
                            where=trouble.redact_url(url),
                            hint="report it",
                        )
            return bytes(taken)

        return self.with_retries(url, ask)

    def get_json(self, url: str, headers: Mapping[str, str]) -> Any:
        text = self.get_bytes(url, headers)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            page = "a web page" if text.lstrip()[:1] == b"<" else "no JSON"
            raise SourceError(
                f"the hub answered with {page}",
                where=trouble.redact_url(url),
                hint="a login page of your network? check the proxy and the hub's address",
            ) from error

    def _record_unreachable(self, url: str, error: TransientError) -> None:
        with self._lock:
            if error.is_unreachable and _parse_host(url) not in self._responsive_hosts:
                self._unreachable_hosts[_parse_host(url)] = error

    def _wait_before_retry(self, failed: int, error: TransientError) -> None:
        if error.retry_after is not None and error.retry_after > self.retry_policy.max_retry_after:
            raise error
        growing = min(
            self.retry_policy.max_pause, self.retry_policy.initial_pause * 2 ** (failed - 1)
        ) * random.uniform(0.5, 1.5)
        self.stopped.wait(growing if error.retry_after is None else max(error.retry_after, growing * 0.1))


def _parse_host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _load_certificates() -> ssl.SSLContext | bool:
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
                hint=f"correct {name}, or unset it",
            ) from error
    return True
