"""An HTTP client that retries, and what each of its failures means: one sentence and the next thing to do.

Honors proxies (HTTPS_PROXY, NO_PROXY), SSL_CERT_FILE and REQUESTS_CA_BUNDLE, and follows redirects (a token is not
sent to another host). A `SourceError` is about a URL or its host: another source may have the same file. A
`TransientError` may be gone at the next attempt. Any other error (a full disk) ends the whole download. Knows nothing
about files or hubs.
"""

import datetime
import email.utils
import errno
import math
import os
import random
import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.io.parse import parse_json

__all__ = ["HttpClient", "RetryPolicy", "SourceError", "TransientError"]

T = TypeVar("T")
MAX_RESPONSE_BYTES = 64 << 20
RESUME_HINT = "start again later: it resumes"
_OPEN_URL = "open the URL in a browser to see what it says"
_LOGIN = "check the name; set HF_TOKEN for Hugging Face, MODELSCOPE_API_TOKEN for ModelScope"
_TERMS = "accept the terms on its page, or use a token that may read it (HF_TOKEN, MODELSCOPE_API_TOKEN)"
_STATUSES = {
    401: ("login required, or it does not exist", _LOGIN),
    403: ("no permission to read this", _TERMS),
    404: ("not found", "check the name, the split and the revision"),
    407: ("the proxy requires a login", "put user and password into HTTPS_PROXY"),
    410: ("it was removed", ""),
    416: ("the server does not have the requested range", ""),
    451: ("blocked for legal reasons", ""),
}
"""Status → message and hint ("": open the URL)."""
_SECRET_PARAMETER = re.compile(r"(?i)sign|token|key|secret|credential|password")


class TransientError(SourceError):
    """A SourceError that the next attempt may not meet.

    retry_after: seconds the server asks to wait. is_unreachable: no connection was made.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, is_unreachable: bool = False, **more: str | None
    ) -> None:
        super().__init__(message, **more)
        self.retry_after, self.is_unreachable = retry_after, is_unreachable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds. max_attempts: attempts in a row that bring no new byte."""

    max_attempts: int = 5
    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    initial_pause: float = 0.5
    max_pause: float = 30.0
    max_retry_after: float = 120.0


class HttpClient:
    """Shared by all threads of a download. num_bytes: received so far. num_requests: sent so far."""

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

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._client.close()

    @contextmanager
    def stream(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A response with status 200 or 206, its body not read yet. Raises SourceError or TransientError."""
        if (failure := self._unreachable_hosts.get(_parse_host(url))) is not None:
            raise SourceError(failure.message, where=redact_url(url), hint=failure.hint)
        with self._lock:
            self.num_requests += 1
        try:
            with self._client.stream("GET", url, headers=dict(headers)) as response:
                with self._lock:
                    self._responsive_hosts.add(_parse_host(url))
                if response.status_code not in (200, 206):
                    raise explain_status(response, url)
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise explain_transport_error(error, url) from error

    def iter_chunks(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body, until `stopped` is set."""
        is_identity = response.headers.get("Content-Encoding", "identity") == "identity"
        for chunk in response.iter_raw() if is_identity else response.iter_bytes():
            self.check_stopped()
            with self._lock:
                self.num_bytes += len(chunk)
            yield chunk

    def check_stopped(self) -> None:
        if self.stopped.is_set():
            raise LorgnetteError("the download was stopped", hint="start again: it resumes")

    def with_retries(self, url: str, attempt: Callable[[], T], get_progress: Callable[[], int] = lambda: 0) -> T:
        """Call `attempt` until it raises no TransientError, with growing pauses.

        get_progress: number of bytes so far; an attempt that brings new ones resets the count of failures. A host that
        never responded is not tried again.
        """
        num_failures, best = 0, get_progress()
        while True:
            self.check_stopped()
            try:
                return attempt()
            except TransientError as error:
                if get_progress() > best:
                    num_failures, best = 0, get_progress()
                num_failures += 1
                max_attempts = self.retry_policy.max_attempts
                if num_failures >= (min(3, max_attempts) if error.is_unreachable else max_attempts):
                    with self._lock:
                        if error.is_unreachable and _parse_host(url) not in self._responsive_hosts:
                            self._unreachable_hosts[_parse_host(url)] = error
                    raise
                self._wait_before_retry(num_failures, error)

    def get_bytes(self, url: str, headers: Mapping[str, str], *, max_bytes: int = MAX_RESPONSE_BYTES) -> bytes:
        """A complete small response body."""

        def request() -> bytes:
            content = bytearray()
            with self.stream(url, headers) as response:
                for chunk in self.iter_chunks(response):
                    content += chunk
                    if len(content) > max_bytes:
                        message = f"the response is longer than {max_bytes >> 20} MiB"
                        raise SourceError(message, where=redact_url(url), hint="report it")
            return bytes(content)

        return self.with_retries(url, request)

    def get_json(self, url: str, headers: Mapping[str, str]) -> Any:
        text = self.get_bytes(url, headers)
        try:
            return parse_json(text)
        except LorgnetteError as error:
            kind = "a web page" if text.lstrip()[:1] == b"<" else "something other than JSON"
            hint = "a login page of your network? check the proxy and the hub's address"
            raise SourceError(f"the hub answered with {kind}", where=redact_url(url), hint=hint) from error

    def _wait_before_retry(self, num_failures: int, error: TransientError) -> None:
        if error.retry_after is not None and error.retry_after > self.retry_policy.max_retry_after:
            raise error
        pause = min(self.retry_policy.max_pause, self.retry_policy.initial_pause * 2 ** (num_failures - 1))
        pause *= random.uniform(0.5, 1.5)  # so that many threads do not come back at once
        self.stopped.wait(pause if error.retry_after is None else max(error.retry_after, pause * 0.1))


def _parse_host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _load_certificates() -> ssl.SSLContext | bool:
    """The certificates to trust: those named by the usual environment variables, else the client's own."""
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"):
        if not (path := os.environ.get(name)):
            continue
        try:
            is_folder = os.path.isdir(path)
            return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)
        except OSError as error:
            message = f"{name} names certificates that cannot be read: {error.strerror or error}"
            raise LorgnetteError(message, where=path, hint=f"correct {name}, or unset it") from error
    return True


def redact_url(url: str) -> str:
    """A URL for messages and logs, without passwords and signatures, at most 240 characters."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    names = {pair: pair.partition("=")[0] for pair in parts.query.split("&")}
    query = "&".join(f"{name}=…" if _SECRET_PARAMETER.search(name) else pair for pair, name in names.items())
    text = urllib.parse.urlunsplit((parts.scheme, host, parts.path, query, ""))
    return text if len(text) <= 240 else text[:239] + "…"


def explain_status(response: httpx2.Response, url: str) -> SourceError:
    """What a status other than 200 and 206 means."""
    status, where = response.status_code, redact_url(url)
    wait = parse_retry_after(response.headers.get("Retry-After"))
    if status == 429:
        suffix = f"; the server asks to wait {math.ceil(wait)} s" if wait is not None else ""
        return TransientError(f"rate limited (HTTP 429){suffix}", where=where, hint=RESUME_HINT, retry_after=wait)
    if status in (408, 425) or status >= 500:
        return TransientError(f"server error (HTTP {status})", where=where, hint=RESUME_HINT, retry_after=wait)
    message, hint = _STATUSES.get(status, ("the server refuses the request", ""))
    return SourceError(f"{message} (HTTP {status})", where=where, hint=hint or _OPEN_URL)


def explain_transport_error(error: Exception, url: str, *, where: str | None = None) -> SourceError:
    """What an exception of the HTTP client means. where: default: the URL."""
    where = where or redact_url(url)
    if permanent := _explain_permanent_error(error):
        return SourceError(permanent[0], where=where, hint=permanent[1])
    if isinstance(error, httpx2.ProxyError):
        message, hint = f"the proxy refuses: {error}", "check HTTPS_PROXY and NO_PROXY"
    elif isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        message = f"cannot reach {urllib.parse.urlsplit(url).hostname or url}: {_explain_unreachable(error)}"
        hint = "check the network, HTTPS_PROXY and the hub's address (HF_ENDPOINT, MODELSCOPE_ENDPOINT)"
        return TransientError(message, where=where, hint=hint, is_unreachable=True)
    elif isinstance(error, httpx2.TimeoutException):
        message, hint = "read timed out", RESUME_HINT
    else:
        message, hint = f"connection lost: {str(error) or type(error).__name__}", RESUME_HINT
    return TransientError(message, where=where, hint=hint)


def _explain_permanent_error(error: Exception) -> tuple[str, str] | None:
    """(message, hint) of an error that no other attempt will change."""
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return "not a URL that can be fetched", "write http:// or https://"
    if isinstance(error, httpx2.TooManyRedirects):
        return "too many redirects", "open the URL in a browser"
    for cause in _iter_causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            hint = "set SSL_CERT_FILE to the certificates of your network, or correct the clock"
            return f"the server's certificate is not trusted: {getattr(cause, 'verify_message', cause)}", hint
    return None


def explain_disk_error(error: OSError, path: Path) -> LorgnetteError:
    """A file cannot be written: this ends the whole download."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space and start again: it resumes"
        return LorgnetteError("the disk is full", where=str(path.parent), hint=hint)
    hint = "choose another folder, or correct its permissions"
    return LorgnetteError(f"cannot write: {error.strerror or error}", where=str(path), hint=hint)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds from now of a Retry-After header: a number of seconds, or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
    return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _explain_unreachable(error: Exception) -> str:
    for cause in _iter_causes(error):
        if isinstance(cause, socket.gaierror):
            return "no network, or no such host"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({cause.reason})"
    return "connection timed out" if isinstance(error, httpx2.TimeoutException) else str(error)
