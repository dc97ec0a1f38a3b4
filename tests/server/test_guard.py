"""Attacks on a local server as they are sent, and what the guard answers. CVEs and issues are of other projects."""

import asyncio
import gzip
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2
import pytest
from served_app import Served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from lorgnette.errors import UsageError
from lorgnette.server import guard
from lorgnette.server.api_errors import ApiError
from lorgnette.server.guard import API_KEY_VARIABLE, MAX_BODY_BYTES, Guard, GuardSettings, is_loopback, read_api_key
from lorgnette.server.http_server import HttpServer, open_port

PORT, KEY = 8787, "key-of-this-test"
OWN = "127.0.0.1:8787"
JSON = {"content-type": "application/json"}
OPEN = GuardSettings("127.0.0.1", PORT)
CLOSED = GuardSettings("127.0.0.1", PORT, api_key=KEY)
CORS = GuardSettings("127.0.0.1", PORT, api_key=KEY, cors=("https://app.example",))
SAFE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> Any:
        return json.loads(self.body)["error"]["code"]


async def say_ok(request: Request) -> Response:
    await request.body()
    return PlainTextResponse("inside")


async def stream(_: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        yield "in"
        yield "side"

    return StreamingResponse(parts(), headers={"cache-control": "no-cache"})


async def fail(_: Request) -> Response:
    raise RuntimeError("a defect")


async def answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


METHODS = ["GET", "POST", "DELETE"]
PATHS = ("/", "/serve.js", "/v1/models", "/v1/chat/completions", "/health", "/metrics")
APP = Starlette(
    routes=[
        *(Route(path, say_ok, methods=METHODS) for path in PATHS),
        Route("/v1/stream", stream, methods=["POST"]),
        Route("/v1/defect", fail),
    ],
    exception_handlers={ApiError: answer_api_error},
)


def ask(
    settings: GuardSettings = OPEN,
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    parts: Sequence[bytes] = (b"{}",),
    app: Guard | None = None,
    cookie: str = "",
    raw_headers: Sequence[tuple[str, str]] = (),
    **headers: str,
) -> Answer:
    """What the guard in front of APP answers. headers: `_` stands for `-`; a Host is added unless one is given."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {**({} if "host" in given or raw_headers else {"host": OWN}), **given}
    if method == "POST":
        given = {**JSON, **given}
    if cookie:
        given["cookie"] = cookie
    path, _, query = path.partition("?")
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in [*given.items(), *raw_headers] if value]
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": pairs,
        "scheme": "http", "root_path": "", "http_version": "1.1", "server": ("127.0.0.1", PORT),
    }  # fmt: skip
    waiting = list(parts)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run((app or Guard(APP, settings))(scope, receive, send))
    start, *bodies = sent
    pairs = [(name.decode().lower(), value.decode()) for name, value in start["headers"]]
    assert len(dict(pairs)) == len(pairs), "a header comes twice"
    assert {name: dict(pairs).get(name) for name in SAFE_HEADERS} == SAFE_HEADERS
    assert "cache-control" in dict(pairs)
    return Answer(start["status"], dict(pairs), b"".join(part.get("body", b"") for part in bodies))


def read(path: str, settings: GuardSettings = OPEN, **more: Any) -> Answer:
    return ask(settings, path, method="GET", **more)


def get_cookie(settings: GuardSettings) -> str:
    return f"{settings.cookie_name}={settings.token}"


def test_what_is_meant_to_pass_passes() -> None:
    """The control of all that follows: the same requests without what is wrong with them."""
    for host in (OWN, "localhost:8787", "[::1]:8787", "LocalHost:8787"):
        assert ask(host=host).body == b"inside"
        assert read("/health", host=host).body == b"inside"
    assert ask(origin="http://127.0.0.1:8787", sec_fetch_site="same-origin").status == 200
    assert ask(authorization="Bearer anything").status == 200  # clients must send a key; here it opens nothing
    assert ask(content_type="application/json; charset=utf-8").status == 200
    assert ask(parts=[b"x" * 2**20] * 32).status == 200
    assert read("/", cookie=get_cookie(OPEN)).body == b"inside"


# --- loopback: TensorBoard listened on every address until 2.0 (tensorboard#2387); 175,000 open Ollamas in 2026 ---


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "8.8.8.8"):
        with pytest.raises(UsageError, match=f"needs an API key · {re.escape(host)} · --api-key KEY"):
            GuardSettings(host, PORT)
        assert GuardSettings(host, PORT, api_key=KEY).api_key == KEY
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert is_loopback(host)
        assert GuardSettings(host, PORT).api_key == ""
    # What a proxy lets through comes from loopback too; a tunnel of this machine has another port.
    with pytest.raises(UsageError, match=r"needs an API key · captions\.example"):
        GuardSettings("127.0.0.1", PORT, allow_hosts=("captions.example:8443",))
    assert GuardSettings("127.0.0.1", PORT, allow_hosts=("localhost:9000", "[::1]:9000")).hosts >= {"localhost:9000"}


def test_a_server_at_every_address_needs_a_name() -> None:
    with pytest.raises(UsageError, match="other machines need a name"):
        GuardSettings.from_options("0.0.0.0", PORT, KEY)
    named = GuardSettings.from_options("0.0.0.0", PORT, KEY, "192.168.1.5", cors="https://app.example")
    assert (named.allow_hosts, named.cors) == (("192.168.1.5",), ("https://app.example",))


def test_the_address_is_the_one_that_clients_type() -> None:
    guards = [GuardSettings(host, 80, KEY) for host in ("127.0.0.1", "::1", "a.example")]
    guards += [GuardSettings("::", 80, KEY, allow_hosts=(name,)) for name in ("b.example", "c.example:8443")]
    addresses = ["127.0.0.1:80", "[::1]:80", "a.example:80", "b.example:80", "c.example:8443"]
    assert [guard.address for guard in guards] == addresses
    assert guards[0].page_url == f"http://127.0.0.1:80/?token={guards[0].token}"


def test_a_key_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    assert read_api_key(None) == ""
    monkeypatch.setenv(API_KEY_VARIABLE, "from-the-environment\n")
    assert read_api_key(None) == "from-the-environment"
    assert read_api_key("option") == "option"
    with pytest.raises(UsageError, match="API key is empty"):
        read_api_key(" ")
    for key in ("two words", "schlüssel", "a\nb"):
        with pytest.raises(UsageError, match="no HTTP header can carry") as raised:
            GuardSettings("127.0.0.1", PORT, api_key=key)
        assert key not in str(raised.value)


def test_secrets_are_not_shown() -> None:
    settings = GuardSettings("127.0.0.1", PORT, api_key=KEY)
    answers = [ask(settings), ask(settings, authorization="Bearer wrong"), read("/", settings)]
    shown = repr(settings) + repr(answers)
    assert KEY not in shown
    assert settings.token not in shown


# --- Host: DNS rebinding, Ollama CVE-2024-28224; Jupyter's check_host ---

FOREIGN_HOSTS = [
    "evil.example", "evil.example:8787", "127.0.0.1", "127.0.0.1:80", "127.0.0.1.evil.example:8787",
    "localhost.evil.example:8787", "127.0.0.1:8787@evil.example", "evil.example@127.0.0.1:8787", "127.1:8787",
    "2130706433:8787", "0.0.0.0:8787", "[::]:8787", "[::ffff:127.0.0.1]:8787", "127.0.0.1:8787 evil.example",
    "127.0.0.1:8787,evil.example", "127.0.0.1:8787.", "localhost.:8787", "127.0.0.1:08787",
    "l\xf6calhost:8787",
]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_another_name_is_refused_on_every_path(host: str) -> None:
    for path in (*PATHS, "/nowhere", f"/?token={CLOSED.token}"):
        for method in ("GET", "POST", "OPTIONS"):
            answer = ask(
                CLOSED, path, method=method, host=host, authorization=f"Bearer {KEY}", cookie=get_cookie(CLOSED)
            )
            assert (answer.status, answer.code) == (403, "wrong_host")


def test_a_host_that_is_missing_or_comes_twice_is_refused() -> None:
    for headers in ([("host", OWN), ("host", "evil.example")], [("host", "evil.example"), ("host", OWN)], [("x", "y")]):
        assert read("/health", raw_headers=headers).code == "wrong_host"


def test_a_forwarded_name_does_not_count() -> None:
    """gradio GHSA-3c67-5hwx-f6wx: a check that trusts what the request says of its host checks nothing."""
    assert ask(host="evil.example", x_forwarded_host=OWN, forwarded=f"host={OWN}").code == "wrong_host"
    assert ask(host="evil.example", origin="http://evil.example").code == "wrong_host"
    assert ask(x_forwarded_host="evil.example", origin="http://evil.example").code == "wrong_origin"


def test_more_names_are_those_that_are_allowed() -> None:
    """Behind a proxy (hermes-agent#34390), or for a telephone in the same network."""
    names = ("Captions.example", "other.example:8443")
    settings = GuardSettings("192.168.1.5", PORT, api_key=KEY, allow_hosts=names)
    for host in ("captions.example", "captions.example:8787", "other.example:8443", "192.168.1.5:8787", OWN):
        assert read("/health", settings, host=host).status == 200
    for host in ("captions.example:80", "other.example", "other.example:8787", "192.168.1.6:8787"):
        assert read("/health", settings, host=host).code == "wrong_host"
    for origin in ("https://captions.example", "http://captions.example:8787", "https://other.example:8443"):
        assert ask(settings, authorization=f"Bearer {KEY}", origin=origin).status == 200
    for name in ("", "*", "*.example", "https://a.example", "a.example/", "a b", "a:b"):
        with pytest.raises(UsageError, match="not the name of a host · --allow-host"):
            GuardSettings("127.0.0.1", PORT, allow_hosts=(name,))


def test_an_address_for_all_is_no_name() -> None:
    """Pages reach servers at 0.0.0.0 past a browser's rules ("0.0.0.0 day", 2024)."""
    for host in ("0.0.0.0", "::"):
        assert {*GuardSettings(host, PORT, api_key=KEY).hosts} == {OWN, "localhost:8787", "[::1]:8787"}
    assert "127.0.0.1" in GuardSettings("127.0.0.1", 80).hosts  # browsers leave the usual port out


# --- token and cookie: Jupyter since 4.3; cookies that outlived a password, CVE-2026-40934 ---


def test_the_token_opens_the_page_once() -> None:
    answer = read(f"/?token={OPEN.token}")
    assert answer.status == 303
    assert answer.headers["location"] == "/"
    assert answer.headers["set-cookie"] == f"lorgnette-8787={OPEN.token}; Path=/; HttpOnly; SameSite=Strict"
    assert answer.headers["cache-control"] == "no-store"
    for path in ("/", "/serve.js"):
        assert read(path, cookie=f"other=1; {get_cookie(OPEN)}").body == b"inside"
    assert len(OPEN.token) >= 43


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?token=%00", "/?token=ü", "/?tok=x"])
def test_without_the_token_the_page_says_what_to_do(path: str) -> None:
    for cookie in ("", "lorgnette-8787=", "lorgnette-8787=wrong", f"lorgnette-8788={OPEN.token}", OPEN.token):
        answer = read(path, cookie=cookie)
        assert answer.status == 401
        assert answer.headers["content-type"].startswith("text/html")
        assert b"Open the address with <code>?token=</code>" in answer.body
        assert b"inside" not in answer.body
    assert (read("/serve.js").status, read("/serve.js").code) == (401, "invalid_token")
    assert b"begin with /v1" in ask(path="/chat/completions").body  # a base URL without /v1
    assert read("/serve.js?token=" + OPEN.token).status == 401  # only the page's own address takes it


def test_a_cookie_ends_with_its_server() -> None:
    restarted = GuardSettings("127.0.0.1", PORT)
    assert read("/", restarted, cookie=get_cookie(OPEN)).status == 401
    assert read("/", restarted, cookie=f"{get_cookie(OPEN)}; {get_cookie(restarted)}").status == 200
    assert GuardSettings("127.0.0.1", 8788).cookie_name != OPEN.cookie_name


# --- the API's key ---


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer ü"]
)
def test_a_key_that_is_given_is_needed(value: str) -> None:
    for path in ("/v1/models", "/v1/chat/completions", "/metrics", "/v1/nowhere"):
        for method in ("GET", "POST"):
            answer = ask(CLOSED, path, method=method, authorization=value)
            assert (answer.status, answer.code) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert ask(CLOSED, authorization=f"bearer  {KEY} ").status == 200
    assert read("/metrics", CLOSED, authorization=f"Bearer {KEY}").status == 200
    assert read("/health", CLOSED).status == 200  # a probe has no key
    assert read("/", CLOSED, authorization=f"Bearer {KEY}").status == 401  # the page has its token


def test_the_pages_cookie_opens_the_api_for_the_page_alone() -> None:
    cookie = get_cookie(CLOSED)
    page = {"origin": f"http://{OWN}", "sec_fetch_site": "same-origin"}
    assert ask(CLOSED, cookie=cookie, **page).status == 200
    assert ask(CLOSED, cookie=cookie, origin=f"http://{OWN}").status == 200  # in a network browsers leave out Sec-Fetch
    assert ask(CLOSED, cookie=cookie, sec_fetch_site="same-origin").status == 200
    assert read("/v1/models", CLOSED, cookie=cookie).status == 200
    assert ask(CLOSED, **page).code == "invalid_api_key"
    # A cookie alone is what a browser sends with anybody's request.
    assert ask(CLOSED, cookie=cookie).code == "invalid_api_key"
    assert ask(CLOSED, cookie=cookie, sec_fetch_site="none").code == "invalid_api_key"
    assert ask(CORS, cookie=get_cookie(CORS), origin="https://app.example").code == "invalid_api_key"
    assert read("/v1/models", CORS, cookie=get_cookie(CORS), origin="https://app.example").code == "invalid_api_key"


# --- CSRF: Gradio PR#7503, gradio#13594, GHSA-3c67-5hwx-f6wx ---

FOREIGN_PAGES = [
    {"origin": "https://evil.example"},
    {"origin": "null"},  # a sandboxed frame, a file
    {"origin": "http://127.0.0.1:3000", "sec_fetch_site": "same-site"},  # another server of this machine
    {"origin": "http://127.0.0.1:8787.evil.example"},
    {"origin": "http://127.0.0.1"},
    {"origin": "file://"},
    {"origin": "https://app.example", "sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},  # a form that a page sends
    {"origin": f"http://{OWN}", "sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-origin, cross-site"},
]


@pytest.mark.parametrize("page", FOREIGN_PAGES, ids=str)
def test_a_foreign_page_is_refused(page: dict[str, str]) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/", "/nowhere"):
        for settings in (OPEN, CLOSED):
            headers = {**page, "authorization": f"Bearer {KEY}"}
            answer = ask(settings, path, cookie=get_cookie(settings), **headers)
            assert (answer.status, answer.code) == (403, "wrong_origin")
            assert not any(name.startswith("access-control") for name in answer.headers)
    assert ask(OPEN, method="OPTIONS", access_control_request_method="POST", **page).code == "wrong_origin"
    if "sec_fetch_mode" not in page:
        assert read("/v1/models", **page).code == "wrong_origin"


def test_a_link_from_elsewhere_may_be_followed() -> None:
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    assert read(f"/?token={OPEN.token}", **link).status == 303
    assert b'<a href="/">' in read("/", **link).body  # SameSite=Strict: the cookie comes with the next click
    assert read("/health", **link).status == 200


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_what_a_form_can_send_is_refused(media_type: str) -> None:
    """These reach a server from any page without a preflight."""
    for path in ("/v1/chat/completions", "/", "/nowhere"):
        answer = ask(OPEN, path, content_type=media_type, cookie=get_cookie(OPEN))
        assert (answer.status, answer.code) == (415, "wrong_type")
        assert "Content-Type: application/json" in json.loads(answer.body)["error"]["message"]


def test_images_are_taken_as_bytes_outside_of_the_api() -> None:
    for media_type, status in (("image/jpeg", 200), ("image/svg+xml", 415), ("image/x", 415), ("text/html", 415)):
        assert ask(path="/", content_type=media_type, cookie=get_cookie(OPEN)).status == status
    assert ask(content_type="image/jpeg").status == 415


# --- CORS: LLaMA-Factory answers `*` with credentials ---


def test_no_page_may_read_the_api_unless_it_is_named() -> None:
    key = {"authorization": f"Bearer {KEY}"}
    preflight = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization,x-stainless-os",
    }
    for settings, origin in (
        (OPEN, "https://app.example"),
        (CORS, "https://app.example.evil"),
        (CORS, "http://app.example"),
    ):
        assert ask(settings, origin=origin, **key).code == "wrong_origin"
        assert ask(settings, method="OPTIONS", origin=origin, **preflight).code == "wrong_origin"
    answer = ask(CORS, method="OPTIONS", origin="https://app.example", sec_fetch_site="cross-site", **preflight)
    assert answer.status == 204
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert answer.headers["access-control-allow-headers"] == "*, Authorization"
    named = [answer, ask(CORS, origin="https://app.example", sec_fetch_site="cross-site", **key)]
    named += [
        ask(CORS, origin="https://app.example"),
        ask(CORS, path="/v1/nowhere", origin="https://app.example", **key),
    ]
    assert [answer.status for answer in named] == [204, 200, 401, 404]
    for answer in named:  # also an error: its page shall show it
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
    assert ask(CORS, **key).headers["vary"] == "Origin"
    for path in ("/", "/metrics", "/health"):  # the API alone
        assert read(path, CORS, origin="https://app.example", cookie=get_cookie(CORS), **key).code == "wrong_origin"
    for origin in ("*", "null", "app.example", "https://app.example/", "https://*.example"):
        with pytest.raises(UsageError, match="not an origin · --cors"):
            GuardSettings("127.0.0.1", PORT, cors=(origin,))


# --- limits: TGI#1802 (a limit that nobody is told of), llm-gateway#2126 (a 404), agent-zero#1857 ---


def test_a_body_that_says_it_is_too_long_is_not_read() -> None:
    for length in (MAX_BODY_BYTES + 1, 10**30):
        answer = ask(parts=[], content_length=str(length))
        assert (answer.status, answer.code) == (413, "request_too_large")
        assert "larger than 32 MiB" in json.loads(answer.body)["error"]["message"]
    assert ask(content_length=str(MAX_BODY_BYTES)).status == 200


def test_a_body_that_does_not_say_its_length_is_counted() -> None:
    """Also one that lies about it."""
    for headers in ({"transfer_encoding": "chunked"}, {"content_length": "2"}, {"content_length": "-1"}, {}):
        answer = ask(parts=[b"x" * 2**20] * 32 + [b"x"], **headers)
        assert (answer.status, answer.code) == (413, "request_too_large")


def test_all_bodies_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until an answer begins the request's body lies in memory. The bytes are given back whatever the end."""
    monkeypatch.setattr(guard, "MAX_BODIES_BYTES", 100)
    others: list[Answer] = []

    async def ask_meanwhile(scope: Any, receive: Any, send: Any) -> None:
        async def ask_second() -> None:
            others.append(await asyncio.to_thread(ask, path="/v1/second", app=app, parts=[b"x" * 60]))

        async def send_late(message: Any) -> None:
            await send(message)
            if scope["path"] == "/v1/stream" and message["type"] == "http.response.start":
                await ask_second()

        await Request(scope, receive).body()
        if scope["path"] == "/v1/first":
            await ask_second()
        await PlainTextResponse("inside")(scope, receive, send_late)

    app = Guard(ask_meanwhile, OPEN)
    assert ask(app=app, path="/v1/first", parts=[b"x" * 60]).status == 200
    assert (others[0].status, others[0].code, others[0].headers["retry-after"]) == (429, "queue_full", "1")
    assert ask(app=app, path="/v1/second", parts=[b"x" * 60]).status == 200
    assert ask(app=app, path="/v1/stream", parts=[b"x" * 60]).status == 200
    assert others[1].status == 200
    assert ask(app=app, path="/v1/second", parts=[b"x" * 60, b"x" * 60]).code == "queue_full"
    assert ask(app=app, path="/v1/second", parts=[b"x" * 100]).status == 200


def test_a_body_that_stops_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_PAUSE_SECONDS", 0.05)
    ended = []

    async def stall(scope: Any, receive: Any, send: Any) -> None:
        waiting = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive_half() -> Any:
            return waiting.pop() if waiting else await asyncio.sleep(20)

        try:
            await Guard(APP, OPEN)(scope, receive_half, send)
        finally:
            ended.append(True)

    answer = ask(app=stall)  # type: ignore[arg-type]
    assert (answer.status, answer.code) == (408, "timeout")
    assert ended


# --- every answer ---


def test_every_answer_has_the_headers() -> None:
    """`ask` looks for them in each answer of this file; here in those of the app, whatever their kind."""
    answer = ask(path="/v1/stream")
    assert answer.body == b"inside"
    assert answer.headers["cache-control"] == "no-cache"  # the app's own word counts
    assert read("/v1/nowhere").status == 404
    assert ask(path="/v1/models", method="PUT", content_type="application/json").status == 405
    with pytest.raises(RuntimeError, match="a defect"):
        read("/v1/defect")


def test_an_answer_that_has_begun_does_not_begin_again() -> None:
    """What fails then ends the connection: a second status in it would be read as text."""

    async def begin(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ApiError(500, "too late", type="server_error")

    with pytest.raises(ApiError, match="too late"):
        ask(app=Guard(begin, OPEN))


def test_a_websocket_is_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(APP, OPEN)({"type": "websocket", "path": "/v1/models", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- bytes on a socket ---


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A real server with the guard in front of APP."""
    listener = open_port("127.0.0.1", 0)
    number = listener.getsockname()[1]
    with HttpServer(Guard(APP, GuardSettings("127.0.0.1", number)), listener):
        yield number


def exchange(port: int, *parts: bytes, is_half: bool = False) -> bytes:
    """What comes back until the server closes; `HOST` in parts is the server's. is_half: close without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part.replace(b"HOST", f"127.0.0.1:{port}".encode()))
        if is_half:
            return b""
        received = b""
        while part := connection.recv(2**16):
            received += part
        return received


POST_HEAD = b"POST /v1/models HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\n"
MALFORMED = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n",
    "two lengths": POST_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length that is none": POST_HEAD + b"Content-Length: -2\r\n\r\n{}",
    "a chunk without a length": POST_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a space before the colon": b"GET /health HTTP/1.1\r\nHost : HOST\r\n\r\n",
    "a folded header": b"GET /health HTTP/1.1\r\n Host: HOST\r\n\r\n",
    "a line of 1 MiB": b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: HOST\r\n\r\n",
    "a header of 1 MiB": b"GET /health HTTP/1.1\r\nHost: HOST\r\nX: " + b"x" * 2**20 + b"\r\n\r\n",
    "a NUL": b"GET /health HTTP/1.1\r\nHost: HOST\r\nX: a\0b\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_malformed_http_is_refused(port: int, request_bytes: bytes) -> None:
    try:
        received = exchange(port, request_bytes)
    except ConnectionError:  # closed while we still wrote
        received = b""
    assert b"inside" not in received
    assert not received or re.match(rb"HTTP/1\.1 4\d\d ", received)
    assert exchange(port, b"GET /health HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n").endswith(b"inside")


def test_a_request_of_a_proxy_is_refused(port: int) -> None:
    """An absolute address goes around no check: its path is none of the API's."""
    target = b"GET http://127.0.0.1:%d/v1/models HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n" % port
    assert exchange(port, target).startswith(b"HTTP/1.1 401 ")
    old = exchange(port, b"GET /health HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 403 ")
    assert b"wrong_host" in old


def test_a_second_request_in_a_body_is_a_body(port: int) -> None:
    """Request smuggling: whoever says both lengths is refused or read by one of them, never by both."""
    hidden = b"GET /health HTTP/1.1\r\nHost: HOST\r\n\r\n"
    both = exchange(
        port,
        POST_HEAD
        + b"Connection: close\r\n"
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + hidden,
    )
    assert both.count(b"HTTP/1.1 ") == 1


def test_a_client_that_goes_away_in_its_body_leaves_no_trace(port: int, caplog: pytest.LogCaptureFixture) -> None:
    head = POST_HEAD + b"Content-Length: 1000\r\n\r\n"
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            exchange(port, head + b"half a body", is_half=True)
        assert exchange(port, b"GET /health HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n").endswith(b"inside")
    assert caplog.records == []


def test_a_client_that_sends_too_much_reads_the_answer(port: int) -> None:
    """Not a broken connection: most clients write all of a body before they read."""
    chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    chunked = [b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40, b"0\r\n\r\n"]
    sized = [b"Content-Length: %d\r\n\r\n" % (40 * 2**20), *[b"x" * 2**20] * 40]
    asked = [b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (40 * 2**20)]
    for parts in (chunked, sized, asked):
        received = exchange(port, POST_HEAD + b"Connection: close\r\n", *parts)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"larger than 32 MiB" in received
        assert received.count(b"HTTP/1.1 ") == 1


# --- the real app behind it ---


@pytest.fixture(scope="module")
def web() -> Iterator[httpx2.Client]:
    with httpx2.Client(verify=False) as client:  # reading certificates takes longer than these tests
        yield client


OUTSIDE = [
    "/../../../../etc/passwd", "/static/../guard.py", "/static/%2e%2e/guard.py", "/static/..%2fguard.py",
    "/static/..%5cguard.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/serve.js%00.png", "/static/",
    "/static/serve.html.j2", "/static/../__init__.py", "//etc/passwd", "/file=/etc/passwd",
    "/gradio_api/file=/etc/passwd", "/picture/1", "/uploads/", "/docs", "/openapi.json", "/redoc", "/.git/config",
    "/v1/../static/serve.js", "/v1/models/../../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/files/%2fetc%2fpasswd",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_becomes_a_file(fake_server: Served, path: str) -> None:
    """Gradio CVE-2023-51449, CVE-2024-1561, CVE-2024-51751, gradio#13593, #6794."""
    cookie = get_cookie(fake_server.settings)
    head = f"GET {path} HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\nCookie: {cookie}\r\n\r\n"
    received = exchange(fake_server.settings.port, head.encode())
    assert received.startswith(b"HTTP/1.1 404 ")
    assert b"root:" not in received
    assert b"import" not in received
    assert b"content-security-policy" in received


def test_nothing_is_fetched_or_opened_for_a_request(fake_server: Served, web: httpx2.Client) -> None:
    """vllm#57157 (CVE-2025-6242) and its kind: every key in which a client may name an image."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        text = {"type": "text", "text": "COCO Yes:"}
        asked = [
            [{"type": "image_url", "image_url": {"url": url}}, text],
            [{"type": "image_url", "image_url": url}, text],
            [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, text],
            [{"type": "image_url", "image_url": "/etc/passwd"}, text],
            [{"type": "image", "image": "/etc/passwd"}, text],
            [{"type": "image", "path": "/etc/passwd"}, text],
            [{"type": "image", "url": url}, text],
            [{"type": "video_url", "video_url": {"url": url}}, text],
            [{"type": "input_audio", "input_audio": {"data": url}}, text],
            [{"type": "file", "file": {"file_data": url}}, text],
        ]
        for content in asked:
            answer = ask_server(web, fake_server, content)
            assert answer.status_code == 400, content
            assert answer.json()["error"]["code"] in ("invalid_image_url", "unsupported_parameter")
        # Keys and marks of training files name no image here.
        keys = {"images": ["/etc/passwd", url], "image": url, "objects": {"image": [0]}}
        for content in ("<image>What is this?", [{"type": "text", "text": "<image>"}]):
            assert ask_server(web, fake_server, content, **keys).status_code == 400
        assert fake_server.scheduler.rows == []
        content = [{"type": "text", "text": "COCO Yes:", "image": "/etc/passwd", "path": url}]
        assert ask_server(web, fake_server, content, **keys).status_code == 200
        assert fake_server.scheduler.pixels == [{}]
        with pytest.raises(TimeoutError):
            listener.accept()


def ask_server(web: httpx2.Client, served: Served, content: Any, **keys: Any) -> httpx2.Response:
    body = {"model": "base", "messages": [{"role": "user", "content": content}], **keys}
    return web.post(f"{served.api}/chat/completions", json=body)


def test_limits_hold_before_the_app_understands_a_body(fake_server: Served, web: httpx2.Client) -> None:
    """Not the JSON error of a cut body, and nothing is unpacked: gzip makes gigabytes of 32 MiB."""
    url = f"{fake_server.api}/chat/completions"
    endless = (b"x" * 2**20 for _ in range(40))
    answer = web.post(url, headers=JSON, content=endless)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    packed = gzip.compress(json.dumps({"model": "base", "messages": [{"role": "user", "content": "a"}]}).encode())
    answer = web.post(url, headers={**JSON, "content-encoding": "gzip"}, content=packed)
    assert answer.status_code == 400
    assert fake_server.scheduler.rows == []


def test_every_answer_of_the_app_has_the_headers(fake_server: Served) -> None:
    with httpx2.Client(base_url=fake_server.root, verify=False) as client:
        assert client.get(fake_server.page).status_code == 303
        answers = [
            client.get(path) for path in ("/", "/static/serve.js", "/v1/models", "/health", "/metrics", "/nowhere")
        ]
        answers += [
            client.post("/v1/chat/completions", headers=JSON, content=b"{"),
            client.delete("/v1/models", headers=JSON),
        ]
        answers.append(ask_server(client, fake_server, "COCO Yes:", stream=True))
        assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 404, 400, 405, 200]
        for answer in answers:
            assert {name: answer.headers.get(name) for name in SAFE_HEADERS} == SAFE_HEADERS
            assert answer.headers["cache-control"] in ("no-store", "no-cache")
            assert "server" not in answer.headers
            assert "access-control-allow-origin" not in answer.headers
