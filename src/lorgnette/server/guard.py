"""Who may ask the server, and how much: an ASGI middleware in front of every route.

    Host                  a name of the server (DNS rebinding)
    Origin                absent, the server's own, or for /v1 one of `cors`; Sec-Fetch-Site must say the same
    page and its files    the token of the start-up line, once; then a cookie
    /v1 and /metrics      the API key, if there is one; or the page's cookie, from the page itself
    body                  JSON or the bytes of an image, MAX_BODY_BYTES at most, counted as it is read; all bodies
                          together, until their answers begin, MAX_BODIES_BYTES

Names and origins are compared with constants, never with what the request says of itself. Every answer has the headers
in _HEADERS, also that of an error.
"""

import asyncio
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorgnette.errors import UsageError
from lorgnette.server.api_errors import ApiError

MAX_BODY_BYTES = 32 * 2**20
MAX_BODIES_BYTES = 2**30
"""Of all requests whose answers have not begun: they lie in memory."""
_PAUSE_SECONDS = 60
"""How long the next part of a body may take."""
_DISCARD_BYTES, _DISCARD_SECONDS = 8 * MAX_BODY_BYTES, 10
"""What is read of a body beyond the limit."""
API_KEY_VARIABLE = "LORGNETTE_API_KEY"
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _CONTENT_SECURITY_POLICY),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_PREFLIGHT_HEADERS = (
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"*, Authorization"),  # the wildcard does not hold for Authorization
    (b"access-control-max-age", b"600"),
)
_READ_METHODS = ("GET", "HEAD")
_IMAGE_TYPES = frozenset(f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "avif", "heic"))
_NAME = r"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])"
_HOST = re.compile(rf"(?P<name>{_NAME})(?P<port>:[0-9]{{1,5}})?")
_ORIGIN = re.compile(rf"https?://{_NAME}(?::[0-9]{{1,5}})?")
_TOKEN_PAGE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>lorgnette</title>
<h1>This page needs its token</h1>
<p>Open the address with <code>?token=</code> that lorgnette printed when it started. It is new at each start.</p>
<p>If you have just done so, <a href="/">go on to the page</a>.</p>
</html>
"""
"""For a browser without the cookie. After a link on another site it has the cookie, but does not send it yet."""

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class GuardSettings:
    """What the guard compares with.

    host, port: where the server listens. api_key: "" is none. token: opens the page. allow_hosts: more names of the
    server, for example behind a proxy. cors: origins of other web pages that may use /v1. Raises UsageError for a host
    that other machines reach without a key, and for what cannot be a key, a name or an origin.
    """

    host: str
    port: int
    api_key: str = field(default="", repr=False)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    allow_hosts: Sequence[str] = ()
    cors: Sequence[str] = ()

    def __post_init__(self) -> None:
        for host in (self.host, *(split_host(name)[0] for name in self.allow_hosts)):
            if not is_loopback(host) and not self.api_key:
                hint = f"--api-key KEY, or {API_KEY_VARIABLE}=KEY in the environment"
                raise UsageError("other machines reach this host, so it needs an API key", where=host, hint=hint)
        if self.api_key and not re.fullmatch(r"[!-~]+", self.api_key):
            hint = "use letters, digits and signs of ASCII, without spaces"
            raise UsageError("the API key has characters that no HTTP header can carry", where="--api-key", hint=hint)
        for origin in self.cors:
            if not _ORIGIN.fullmatch(origin.lower()):
                hint = "write scheme, host and port: https://app.example"
                raise UsageError(f"{origin!r} is not an origin", where="--cors", hint=hint)

    @classmethod
    def from_options(
        cls, host: str, port: int, api_key: str, allow_host: str | Sequence[str] = (), cors: str | Sequence[str] = ()
    ) -> "GuardSettings":
        """Raises UsageError also for a server at every address of this machine that has no name for clients."""
        names, origins = ([words] if isinstance(words, str) else words for words in (allow_host, cors))
        guard = cls(host, port, api_key, allow_hosts=tuple(names), cors=tuple(origins))
        if host in _EVERY_ADDRESS and not names:
            hint = "the address that clients type, such as --allow-host 192.168.1.5"
            raise UsageError("other machines need a name for this one", where=f"--host {host}", hint=hint)
        return guard

    @property
    def address(self) -> str:
        """Host and port as clients type them."""
        if self.host not in _EVERY_ADDRESS:
            return f"{_quote_address(self.host)}:{self.port}"
        name = self.allow_hosts[0]
        return name if split_host(name)[1] else f"{name}:{self.port}"

    @property
    def page_url(self) -> str:
        """The page, with its token."""
        return f"http://{self.address}/?token={self.token}"

    @cached_property
    def hosts(self) -> frozenset[str]:
        """The values that the header Host may have. A name of allow_hosts without a port is also taken alone: a proxy
        at the usual port sends no port."""
        own = {*_LOOPBACK_NAMES, _quote_address(self.host.lower())} - {"0.0.0.0", "[::]"}  # noqa: S104
        named = {name.lower() for name in self.allow_hosts}
        without_port = own | {name for name in named if not split_host(name)[1]}
        with_port = {f"{name}:{self.port}" for name in without_port}
        return frozenset(with_port | named | (own if self.port == 80 else set()))

    @cached_property
    def origins(self) -> frozenset[str]:
        """The origins of the server's own page; a proxy may add https."""
        return frozenset(f"{scheme}://{host}" for scheme in ("http", "https") for host in self.hosts)

    @cached_property
    def foreign_origins(self) -> frozenset[str]:
        """The origins of other pages that may use /v1."""
        return frozenset(origin.lower() for origin in self.cors)

    @property
    def cookie_name(self) -> str:
        """Cookies know no ports, so each server of a host needs its own name."""
        return f"lorgnette-{self.port}"


def read_api_key(option: str | None) -> str:
    """The key of --api-key, else of the environment; "" if there is none. Raises UsageError for an empty option."""
    if option is not None and not option.strip():
        raise UsageError("the API key is empty", where="--api-key", hint="write a key, or leave the option out")
    return (os.environ.get(API_KEY_VARIABLE, "") if option is None else option).strip()


def split_host(host: str) -> tuple[str, str]:
    """Name and port ("": none) of what a browser's address has. Raises UsageError if it is not that."""
    if (match := _HOST.fullmatch(host.lower())) is None:
        hint = "write it as in a browser's address: captions.example or captions.example:8443"
        raise UsageError(f"{host!r} is not the name of a host", where="--allow-host", hint=hint)
    return match["name"], match["port"] or ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at this host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """The middleware. It keeps no part of a body or an answer: streams pass through."""

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self.app, self.settings = app, settings
        self._body_bytes = _ByteCount()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Request(scope, self.settings)
        body = _Body(receive, self._body_bytes)
        answer = _Answer(send, request.cors_headers, body.release)
        try:
            request.check_host()
            if request.is_preflight:
                return await answer.send_whole(204, _PREFLIGHT_HEADERS)
            request.check_origin()
            if request.has_token:
                return await answer.send_whole(303, request.cookie_headers)
            if request.needs_token:
                return await answer.send_whole(401, [(b"content-type", b"text/html; charset=utf-8")], _TOKEN_PAGE)
            request.check_access()
            request.check_type()
            if request.is_too_long:
                await body.refuse(has_begun=not request.waits_for_continue)
            await self.app(scope, body.receive, answer.send)
        except ClientDisconnect:
            pass  # in the middle of its body: nobody waits for an answer
        except ApiError as error:
            if answer.has_started:
                raise
            await error.to_response()(scope, receive, answer.send)
        finally:
            body.release()
        return None


class _Request:
    """What a request's first lines say, and whether it may pass."""

    def __init__(self, scope: Scope, settings: GuardSettings) -> None:
        self._scope, self._settings = scope, settings
        self._headers: dict[str, str] = {}
        for name, value in scope["headers"]:  # a header that comes twice equals no constant
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text
        self._path: str = scope["path"]
        self._only_reads = scope["method"] in _READ_METHODS
        self._is_api = self._path == "/v1" or self._path.startswith("/v1/")
        self._origin, self._site = self._get("origin").lower(), self._get("sec-fetch-site")
        self._has_foreign_origin = self._is_api and self._origin in settings.foreign_origins

    def _get(self, name: str) -> str:
        return self._headers.get(name, "")

    def check_host(self) -> None:
        """Raise ApiError 403 unless Host is a name of the server."""
        host = self._get("host").lower()
        if host not in self._settings.hosts:
            message = f"this server does not have the name {host[:100]!r}; --allow-host NAME gives it one more"
            raise ApiError(403, message, code="wrong_host")

    def check_origin(self) -> None:
        """Raise ApiError 403 for the request of another site's page. A link that is followed is none."""
        is_link = self._only_reads and self._get("sec-fetch-mode") == "navigate"
        has_foreign_site = self._site not in ("", "same-origin", "none") and not is_link
        has_own_origin = not self._origin or self._origin in self._settings.origins
        if not self._has_foreign_origin and (has_foreign_site or not has_own_origin):
            message = f"pages of {self._origin[:100] or 'another site'} may not use this server; "
            raise ApiError(403, f"{message}--cors ORIGIN lets a page use /v1", code="wrong_origin")

    @property
    def waits_for_continue(self) -> bool:
        """Whether the client has not begun its body: curl asks first with a large one."""
        return self._get("expect").lower() == "100-continue"

    @property
    def cors_headers(self) -> Headers:
        """For a page of another origin that may read the answer. Without credentials: it has no cookie of ours."""
        vary = [(b"vary", b"Origin")] if self._is_api and self._settings.foreign_origins else []
        allow = [(b"access-control-allow-origin", self._origin.encode("latin-1"))] if self._has_foreign_origin else []
        return vary + allow

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks if such a page may send its request."""
        return self._scope["method"] == "OPTIONS" and self._has_foreign_origin

    @property
    def has_token(self) -> bool:
        """Whether this is the address of the start-up line."""
        if self._path != "/" or not self._only_reads:
            return False
        query = parse_qs(self._scope["query_string"].decode("latin-1"))
        return any(_is_secret(token, self._settings.token) for token in query.get("token", ()))

    @property
    def cookie_headers(self) -> Headers:
        """The cookie, and the address without the token."""
        secure = "; Secure" if self._scope["scheme"] == "https" else ""
        cookie = f"{self._settings.cookie_name}={self._settings.token}; Path=/; HttpOnly; SameSite=Strict{secure}"
        return [(b"location", b"/"), (b"set-cookie", cookie.encode())]

    @property
    def needs_token(self) -> bool:
        """Whether a browser asks for the page without the cookie."""
        return self._path == "/" and not self._has_cookie

    @property
    def _has_cookie(self) -> bool:
        pairs = (pair.strip().partition("=") for pair in re.split("[;,]", self._get("cookie")))
        name, token = self._settings.cookie_name, self._settings.token
        return any(key == name and _is_secret(value, token) for key, _, value in pairs)

    @property
    def _has_key(self) -> bool:
        scheme, _, key = self._get("authorization").partition(" ")
        return scheme.lower() == "bearer" and _is_secret(key.strip(), self._settings.api_key)

    @property
    def _is_from_page(self) -> bool:
        """Whether the cookie counts for /v1: the browser says that this server's page asks, or nothing is changed.

        Browsers send Sec-Fetch-Site over https and on loopback only, and Origin with every POST.
        """
        if self._origin:
            return self._origin in self._settings.origins
        return self._site == "same-origin" or (self._only_reads and not self._site)

    def check_access(self) -> None:
        """Raise ApiError 401 without the key or the cookie."""
        if self._path == "/health":
            return
        if self._is_api or self._path == "/metrics":
            if self._settings.api_key and not self._has_key and not (self._is_from_page and self._has_cookie):
                message = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
                raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        elif not self._has_cookie:
            message = "open the page by the address with its token first; the API's addresses begin with /v1"
            raise ApiError(401, message, code="invalid_token")

    @property
    def is_too_long(self) -> bool:
        """Whether the body says that it is."""
        length = self._get("content-length")
        return length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY_BYTES)

    def check_type(self) -> None:
        """Raise ApiError 415 for a body that a web form could send."""
        media_type = self._get("content-type").partition(";")[0].strip().lower()
        is_taken = media_type == "application/json" or (media_type in _IMAGE_TYPES and not self._is_api)
        if self._scope["method"] not in (*_READ_METHODS, "OPTIONS") and not is_taken:
            message = f"the body is {media_type[:100] or 'of no type'}; send JSON with Content-Type: application/json"
            raise ApiError(415, message, code="wrong_type")


@dataclass
class _ByteCount:
    """Of all bodies that lie in memory."""

    value: int = 0


class _Body:
    """Counts a body's bytes as they come: a chunked one does not say its length."""

    def __init__(self, receive: Receive, total: _ByteCount) -> None:
        self._receive, self._total, self._has_more = receive, total, True
        self._num_bytes = self._num_held_bytes = 0

    async def receive(self) -> Message:
        """The next part. Raises ApiError 413 or 429 for too many bytes, 408 if none comes."""
        if not self._has_more:
            return await self._receive()  # the end of the connection: it may take as long as the answer
        try:
            message = await asyncio.wait_for(self._receive(), _PAUSE_SECONDS)
        except TimeoutError:
            message_text = f"no part of the body has come for {_PAUSE_SECONDS} seconds"
            raise ApiError(408, message_text, code="timeout", headers={"connection": "close"}) from None
        self._has_more = message.get("more_body", False)
        length = len(message.get("body", b""))
        self._num_bytes += length
        self._num_held_bytes += length
        self._total.value += length
        if self._num_bytes > MAX_BODY_BYTES:
            await self.refuse()
        if self._total.value > MAX_BODIES_BYTES:
            message_text = f"{MAX_BODIES_BYTES // 2**20} MiB of requests wait already; ask again later"
            raise ApiError(429, message_text, type="rate_limit_error", code="queue_full", headers={"retry-after": "1"})
        return message

    async def refuse(self, *, has_begun: bool = True) -> NoReturn:
        """Raise ApiError 413, after the rest was read: a client that is cut off while it writes reads no answer."""
        num_bytes = 0 if has_begun else _DISCARD_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while self._has_more and num_bytes < _DISCARD_BYTES:
                    message = await self._receive()
                    self._has_more = message.get("more_body", False)
                    num_bytes += len(message.get("body", b""))
        message_text = f"the request is larger than {MAX_BODY_BYTES // 2**20} MiB; send smaller or fewer images"
        raise ApiError(413, message_text, code="request_too_large")

    def release(self) -> None:
        """The answer begins, or the request has ended: its body lies in memory no longer."""
        self._total.value -= self._num_held_bytes
        self._num_held_bytes = 0


class _Answer:
    """Adds the headers that every answer has. on_start: is called when it begins."""

    def __init__(self, send: Send, headers: Headers, on_start: Callable[[], None]) -> None:
        self._send, self._headers, self._on_start, self.has_started = send, headers, on_start, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            self._on_start()
            own = message.get("headers", [])
            is_kept = any(name.lower() == b"cache-control" for name, _ in own)
            cache = [] if is_kept else [(b"cache-control", b"no-store")]
            message = {**message, "headers": [*own, *cache, *_HEADERS, *self._headers]}
        await self._send(message)

    async def send_whole(self, status: int, headers: Headers, body: bytes = b"") -> None:
        length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self.send({"type": "http.response.body", "body": body})


def _is_secret(given: str, secret: str) -> bool:
    """Equal, in a time that tells nothing about the secret."""
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


def _quote_address(host: str) -> str:
    """An IPv6 address in brackets, as URLs have it."""
    return f"[{host}]" if ":" in host else host
