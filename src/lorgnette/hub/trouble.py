"""Why a download failed, in one sentence and with the next thing to do.

Knows nothing about files or hubs. A `SourceError` is the fault of an address or its host: another source may serve
the same file. A `PassingError` one may be gone at the next try. Anything else (a full disk) ends the whole download.
"""

import datetime
import email.utils
import errno
import math
import re
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import httpx2

from lorgnette.errors import LorgnetteError

RESUME_HINT = "start again later: what is already there is kept"
_SECRET_PARAMETER = re.compile(r"(?i)sign|token|key|secret|credential|password")


class SourceError(LorgnetteError):
    """This address does not give the file."""


class TransientError(SourceError):
    """The same, but the next try may succeed. wait: seconds the server asks for. unreachable: nobody answered."""

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.retry_after, self.is_unreachable = retry_after, is_unreachable


def relocated(error: SourceError, where: str) -> SourceError:
    """The same, said of another place."""
    if isinstance(error, TransientError):
        return TransientError(
            error.message,
            where=where,
            hint=error.hint,
            retry_after=error.retry_after,
            is_unreachable=error.is_unreachable,
        )
    return SourceError(error.message, where=where, hint=error.hint)


def redact_url(url: str) -> str:
    """An address for an error line: without passwords and signatures."""
    parts = urllib.parse.urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    query = "&".join(
        f"{pair.partition('=')[0]}=…" if _SECRET_PARAMETER.search(pair.partition("=")[0]) else pair
        for pair in parts.query.split("&")
    )
    text = urllib.parse.urlunsplit((parts.scheme, place, parts.path, query, ""))
    return text if len(text) <= 240 else text[:239] + "…"


def explain_status(response: httpx2.Response, url: str) -> SourceError:
    """What a status other than 200 and 206 means."""
    status, place = response.status_code, redact_url(url)
    wait = parse_retry_after(response.headers.get("Retry-After"))
    if status == 429:
        asked = f"; the server asks to wait {math.ceil(wait)} s" if wait is not None else ""
        return TransientError(f"a quota is used up (429){asked}", where=place, hint=RESUME_HINT, retry_after=wait)
    if status in (408, 425) or status >= 500:
        return TransientError(f"the server failed ({status})", where=place, hint=RESUME_HINT, retry_after=wait)
    return SourceError(_describe_status(status), where=place, hint=_suggest_hint(status))


def _describe_status(status: int) -> str:
    known = {
        401: "the server wants a login (401), or there is no such thing",
        403: "no rights to read this (403)",
        404: "there is nothing at this address (404)",
        407: "the proxy wants a login (407)",
        410: "this was taken away (410)",
        416: "the server does not hold the part asked for (416)",
        451: "blocked for legal reasons (451)",
    }
    return known.get(status, f"the server refuses ({status})")


def _suggest_hint(status: int) -> str:
    login = "check the name; set HF_TOKEN for Hugging Face, MODELSCOPE_API_TOKEN for ModelScope"
    known = {
        401: login,
        403: "accept the terms on its page, or use a token that may read it (HF_TOKEN, MODELSCOPE_API_TOKEN)",
        404: "check the name, the split and the revision",
        407: "put user and password into HTTPS_PROXY",
    }
    return known.get(status, "open the address in a browser to see what it says")


def explain_transport_error(error: Exception, url: str) -> SourceError:
    """What an exception of the HTTP client means."""
    place = redact_url(url)
    if lasting := _explain_permanent_error(error):
        return SourceError(lasting[0], where=place, hint=lasting[1])
    if isinstance(error, httpx2.ProxyError):
        what, remedy = f"the proxy does not let it through: {error}", "check HTTPS_PROXY and NO_PROXY"
    elif isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        what = f"{urllib.parse.urlsplit(url).hostname or url} cannot be reached: {_explain_unreachable(error)}"
        remedy = "check the network, HTTPS_PROXY and the hub's address (HF_ENDPOINT, MODELSCOPE_ENDPOINT)"
        return TransientError(what, where=place, hint=remedy, is_unreachable=True)
    elif isinstance(error, httpx2.TimeoutException):
        what, remedy = "the server went silent", RESUME_HINT
    else:
        what, remedy = f"the connection was cut: {str(error) or type(error).__name__}", RESUME_HINT
    return TransientError(what, where=place, hint=remedy)


def _explain_permanent_error(error: Exception) -> tuple[str, str] | None:
    """What no second try will change."""
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return "this is not an address that can be fetched", "write http:// or https://"
    if isinstance(error, httpx2.TooManyRedirects):
        return "the address leads in a circle", "open it in a browser"
    if untrusted := _find_certificate_error(error):
        remedy = "set SSL_CERT_FILE to the certificates of your network, or correct the clock"
        return f"the server's certificate is not trusted: {untrusted}", remedy
    return None


def explain_disk_error(error: OSError, path: Path) -> LorgnetteError:
    """A file that cannot be written; it ends the whole download."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LorgnetteError(
            "the disk is full", where=str(path.parent), hint="free some space and start again: what is there is kept"
        )
    return LorgnetteError(
        f"cannot write: {error.strerror or error}", where=str(path), hint="choose another folder, or mend its rights"
    )


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())


def _iter_causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _find_certificate_error(error: Exception) -> str | None:
    for cause in _iter_causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return str(cause)
    return None


def _explain_unreachable(error: Exception) -> str:
    for cause in _iter_causes(error):
        if isinstance(cause, socket.gaierror):
            return "no network, or no such host"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection is refused"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS with it ({cause.reason})"
    return "no answer in time" if isinstance(error, httpx2.TimeoutException) else str(error)
