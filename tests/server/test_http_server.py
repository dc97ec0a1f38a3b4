"""The HTTP server: which port it takes, when it answers, and how it ends."""

import asyncio
import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.server import http_server
from lorgnette.server.http_server import DEFAULT_PORT, HttpServer, open_port


async def send_start(send: Callable[..., Any], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})


class Endless:
    """An app whose answer goes on until it is told to end."""

    def __init__(self) -> None:
        self.has_begun, self.is_stopped = threading.Event(), False

    def stop(self) -> None:
        self.is_stopped = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send_start(send)
        while not self.is_stopped:
            await send({"type": "http.response.body", "body": b"more\n", "more_body": True})
            self.has_begun.set()
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"stopped"})


class Torrent:
    """An app whose answer is larger than any buffer. It ends when the client has gone."""

    def __init__(self) -> None:
        self.has_begun, self.has_ended = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/small":
            await send_start(send)
            return await send({"type": "http.response.body", "body": b"here"})
        while (await receive()).get("more_body"):
            pass
        gone = asyncio.ensure_future(receive())
        await send_start(send)
        self.has_begun.set()
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
            await asyncio.sleep(0)  # to a client that has gone, nothing is waited for
        self.has_ended.set()
        return None


def list_connections(server: HttpServer) -> list[Any]:
    return list(server._server.server_state.connections)


def ask_without_reading(port: socket.socket) -> socket.socket:
    connection = socket.create_connection(port.getsockname(), timeout=10)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    return connection


@pytest.fixture
def occupied() -> Iterator[int]:
    """A port of loopback on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_answers_end_when_the_server_stops() -> None:
    app, port = Endless(), open_port("127.0.0.1", 0)
    number = port.getsockname()[1]
    server = HttpServer(app, port, app.stop)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number))  # not before it answers
    with closing(http.client.HTTPConnection("127.0.0.1", number, timeout=10)) as connection:
        with server:
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert app.has_begun.wait(10)
        assert answer.read().endswith(b"more\nstopped")
    assert answer.headers["server"] is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number))
    open_port("127.0.0.1", number).close()  # free at once, though connections were open


def test_a_given_port_that_is_taken_is_an_error(occupied: int) -> None:
    with pytest.raises(LorgnetteError, match=f"port {occupied} is taken"):
        open_port("127.0.0.1", occupied)


def test_without_a_port_the_next_free_one_is_taken(occupied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.server.http_server.DEFAULT_PORT", occupied)
    with open_port("127.0.0.1") as port:
        assert occupied < port.getsockname()[1] < occupied + 100
    assert DEFAULT_PORT == 8787


def test_two_servers_do_not_share_a_port() -> None:
    """The first has it from the start, before it listens; one that binds it all the same cannot listen."""
    with open_port("127.0.0.1", 0) as first, pytest.raises(LorgnetteError, match="is taken"):
        open_port("127.0.0.1", first.getsockname()[1])
    first, second = (socket.socket() for _ in range(2))
    for port in (first, second):
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(("127.0.0.1", 0 if port is first else first.getsockname()[1]))
    with HttpServer(Endless(), first), second, pytest.raises(LorgnetteError, match="is taken"):
        HttpServer(Endless(), second).start()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 64 + ".example", ""])
def test_a_host_that_is_not_this_machine_is_an_error(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str, *_: object, **__: object) -> list[Any]:
        """No test asks a name server."""
        if name == "192.0.2.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, 0))]
        raise UnicodeError if len(name) > 63 else socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(LorgnetteError, match="no address of this machine"):
        open_port(host, 0)


def test_a_wait_for_the_end_hears_ctrl_c(lost_signal: Callable[[], AbstractContextManager[None]]) -> None:
    with HttpServer(Endless(), open_port("127.0.0.1", 0)) as server, lost_signal():
        server.wait()


def test_what_ends_the_thread_reaches_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HttpServer(Endless(), open_port("127.0.0.1", 0))

    async def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("uvicorn.Server.startup", fail)
    with pytest.raises(RuntimeError, match="broken"):
        server.start()


def test_an_app_that_fails_answers_500() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError

    port = open_port("127.0.0.1", 0)
    address = port.getsockname()
    with HttpServer(app, port), closing(http.client.HTTPConnection(*address, timeout=10)) as connection:
        connection.request("POST", "/", body=json.dumps({}))
        assert connection.getresponse().status == 500


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; it has sent nothing, or what was read already."""
    connection.settimeout(0.3)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_connections_without_a_request_make_way_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first: who says nothing, who does not end a request, and who has had an answer. None that is answered
    does."""
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 5)
    answered = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        while scope["path"] == "/slow" and not answered.is_set():
            await asyncio.sleep(0.01)
        await send_start(send)
        await send({"type": "http.response.body", "body": b"here"})

    def open_connection(sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(address)
        connection.sendall(sent)
        return connection

    def ask(path: bytes) -> bytes:
        return b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"

    port = open_port("127.0.0.1", 0)
    address = port.getsockname()
    with ExitStack() as stack:
        stack.enter_context(HttpServer(app, port))
        stack.callback(answered.set)
        slow = [open_connection(ask(b"/slow")) for _ in range(2)]
        kept = open_connection(ask(b"/"))
        while not kept.recv(1000).endswith(b"0\r\n\r\n"):
            pass
        head = open_connection(b"GET / HT")
        body = open_connection(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        assert not is_closed(body)
        silent = []
        for oldest in (kept, head, body):
            silent.append(open_connection())
            assert is_closed(oldest)
        with closing(http.client.HTTPConnection(*address, timeout=10)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"here"
            assert [is_closed(each) for each in (*silent, *slow)] == [True, False, False, False, False]
        slow += [open_connection(ask(b"/slow")) for _ in range(3)]
        assert not is_closed(slow[-1])
        assert all(is_closed(each) for each in silent[1:])
        late = open_connection(ask(b"/"))  # all others are being answered
        assert is_closed(late)
        answered.set()
        for each in slow:
            each.settimeout(10)
            assert each.recv(1000).startswith(b"HTTP/1.1 200")
    for each in (*slow, *silent, kept, head, body, late):
        each.close()


@pytest.mark.parametrize("is_closed_first", [True, False])
def test_a_client_that_does_not_read_its_answer_is_left(is_closed_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, or as soon as there are too many connections."""
    monkeypatch.setattr(http_server, "_READ_SECONDS", 0.2 if is_closed_first else 60)
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2 if is_closed_first else 1)
    app, port = Torrent(), open_port("127.0.0.1", 0)
    with HttpServer(app, port) as server, ask_without_reading(port):
        assert app.has_begun.wait(10)
        while not is_closed_first and not any(each.flow.write_paused for each in list_connections(server)):
            time.sleep(0.01)
        assert not is_closed_first or app.has_ended.wait(10)
        with closing(http.client.HTTPConnection(*port.getsockname(), timeout=10)) as connection:
            connection.request("GET", "/small")
            assert connection.getresponse().read() == b"here"
        assert app.has_ended.wait(10)


def test_a_client_that_reads_slowly_has_its_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_READ_SECONDS", 0.3)
    num_bytes = 2**24

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send_start(send)
        await send({"type": "http.response.body", "body": bytes(num_bytes)})

    port = open_port("127.0.0.1", 0)
    with HttpServer(app, port), closing(http.client.HTTPConnection(*port.getsockname(), timeout=10)) as connection:
        connection.request("GET", "/")
        answer, received = connection.getresponse(), 0
        while part := answer.read(2**21):
            received += len(part)
            time.sleep(0.1)
        assert received == num_bytes


def test_clients_that_hold_their_connections_do_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One does not read, and one does not end its request: no traceback is printed for them."""
    monkeypatch.setattr(http_server, "_STOP_SECONDS", 0.5)
    app, port = Torrent(), open_port("127.0.0.1", 0)
    server = HttpServer(app, port)
    server.start()
    with ask_without_reading(port), socket.create_connection(port.getsockname(), timeout=10) as upload:
        upload.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        assert app.has_begun.wait(10)
        server.stop()
        assert app.has_ended.is_set()
        assert is_closed(upload)
    assert not caplog.records


@pytest.mark.parametrize(("num_files", "expected"), [(256, 128), (1_000_000, 1000), (resource.RLIM_INFINITY, 1000)])
def test_half_of_the_files_of_a_process_may_be_connections(
    num_files: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (num_files, num_files))
    assert http_server._limit_connections() == expected
