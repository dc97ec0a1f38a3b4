"""The HTTP server: its port, its thread, and its end. What it answers is the ASGI app's matter."""

import asyncio
import atexit
import errno
import resource
import socket
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lorgnette.errors import LorgnetteError, UsageError

DEFAULT_PORT = 8787
_NUM_PORTS = 100
"""Ports that are tried from the default one on."""
_KEEP_ALIVE_SECONDS = 75
"""How long a client's idle connection stays open: longer than clients keep theirs, or they would write to a closed
one."""
_MAX_CONNECTIONS = 1000
"""Open connections. Fewer if the process may not open twice as many files."""
_BACKLOG = 64
"""Connections that wait until they are accepted."""
_READ_SECONDS = 60
"""How long a client may read nothing while an answer waits for it."""
_STOP_SECONDS = 5
"""How long open answers may take to end with an error. Then their connections are closed."""


def open_port(host: str, port: int | None = None) -> socket.socket:
    """A socket that is bound to a port of this machine, and does not listen yet.

    port: None takes the default one, or the next that is free; 0 any that is free. Raises LorgnetteError if the port is
    taken or no port, or if the host is no address of this machine.
    """
    if port is not None and not 0 <= port <= 65535:
        raise UsageError("no port", where=f"port {port}", hint="a port is a number from 1 to 65535; 0 takes any")
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # a label of more than 63 characters is a UnicodeError
        raise _build_address_error(host) from None
    family, address = min((family, address[0]) for family, *_, address in addresses)  # IPv4 before IPv6
    for candidate in (port,) if port is not None else count(DEFAULT_PORT):
        try:
            return _bind_socket(family, (address, candidate))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _build_address_error(host) from None
            if port is None and candidate < DEFAULT_PORT + _NUM_PORTS:
                continue
            if error.errno != errno.EADDRINUSE:  # a port below 1024 needs rights
                raise LorgnetteError(str(error.strerror), where=f"port {candidate}", hint="use another port") from None
            raise _build_taken_error(candidate) from None
    raise AssertionError


def _bind_socket(family: int, address: tuple[str | int, int]) -> socket.socket:
    """Asks for an address of its own; else shares one with connections that their server has left a minute ago. With
    SO_REUSEADDR alone, a server that loads its model would share its port with another one."""
    for shares in (False, True):
        port = socket.socket(family)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shares)
        try:
            port.bind(address)
        except OSError as error:
            port.close()
            if shares or error.errno != errno.EADDRINUSE:
                raise
        else:
            return port
    raise AssertionError


class HttpServer:
    """Answers on a port with an ASGI app, in a thread of its own, from `start` until `stop`.

    on_stop: is called once no more requests are taken; it ends the answers that are open.
    """

    def __init__(self, app: Any, port: socket.socket, on_stop: Callable[[], None] = lambda: None) -> None:
        self._port = port
        self._error: BaseException | None = None
        self._has_ended = threading.Event()
        # Nothing that depends on which of uvicorn's optional packages are installed, and no trust in a proxy's headers.
        config = uvicorn.Config(
            app, loop="asyncio", http=_Connection, ws="none", lifespan="off", interface="asgi3", log_config=None,
            log_level="error", access_log=False, proxy_headers=False, server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=_STOP_SECONDS + 1, backlog=_BACKLOG,
        )  # fmt: skip
        self._server = _Uvicorn(config, on_stop)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when it answers. Raises LorgnetteError if another program has taken the port meanwhile."""
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of its connections: see _bind_socket
        try:
            self._port.listen(self._server.config.backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise _build_taken_error(self._port.getsockname()[1]) from None
        self._thread.start()
        self._server.is_open.wait()
        self._raise_error()
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return when it has ended. Raises what ended it, and KeyboardInterrupt."""
        # Not Thread.join: after a KeyboardInterrupt there, Python 3.11 takes the thread for ended.
        while not self._has_ended.wait(1):
            pass
        self._raise_error()

    def stop(self) -> None:
        """End the open answers with an error, and return when all connections are closed."""
        atexit.unregister(self.stop)  # a second Ctrl-C ends the process at once
        self._server.should_exit = True
        self.wait()

    def _run(self) -> None:
        try:
            self._server.run([self._port])
        except BaseException as error:  # whoever waits raises it
            self._error = error
        finally:
            self._port.close()
            self._server.is_open.set()
            self._has_ended.set()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class _Connection(H11Protocol):
    """A connection. It is closed if its client reads nothing for _READ_SECONDS. If there are too many, the one that has
    sent no whole request, or read no answer, for longest is closed for a new one.

    Otherwise clients that open connections and do nothing keep everybody else out.
    """

    _since = 0.0
    """When it was opened, when its last answer ended, or when its client stopped reading."""
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = time.monotonic()
        if len(self.connections) > _limit_connections():
            silent = [each for each in self.connections if isinstance(each, _Connection) and each._is_silent]
            oldest = min(silent, key=lambda each: each._since)
            self.connections.discard(oldest)  # it closes a little later
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_read_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._since = time.monotonic()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_read_timer()

    def _watch_reader(self, num_bytes: int | None = None) -> None:
        """Close the connection if num_bytes are unread as they were _READ_SECONDS ago; else look again after these."""
        unread = self.transport.get_write_buffer_size()
        if unread == num_bytes:
            self.transport.abort()
        else:
            self._read_timer = self.loop.call_later(_READ_SECONDS, self._watch_reader, unread)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = time.monotonic()

    @property
    def _is_silent(self) -> bool:
        """Whether it has no request, or no whole one, or an answer that nobody reads. A new connection has none."""
        return self.cycle is None or self.cycle.response_complete or self.is_uploading or self._read_timer is not None

    @property
    def is_uploading(self) -> bool:
        """Whether a part of the request's body has not come yet."""
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete


def _limit_connections() -> int:
    """The most open connections: half of the files that the process may open. Images and models need files too."""
    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if num_files == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, num_files // 2)


class _Uvicorn(uvicorn.Server):
    """is_open: whether it answers, or has failed to."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self.is_open, self._on_stop = threading.Event(), on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_open.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._on_stop()
        self._close_connections(lambda connection: connection.is_uploading)
        timer = asyncio.get_running_loop().call_later(_STOP_SECONDS, self._close_connections)
        await super().shutdown(sockets)
        timer.cancel()

    def _close_connections(self, is_meant: Callable[[_Connection], bool] = lambda _: True) -> None:
        """At once. The app hears that the client is gone; uvicorn would cancel it and print a traceback."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Connection) and is_meant(connection):
                connection.transport.abort()


def _build_address_error(host: str) -> LorgnetteError:
    hint = "127.0.0.1 is for this machine alone, 0.0.0.0 for its network"
    return LorgnetteError("no address of this machine", where=f"host {host}", hint=hint)


def _build_taken_error(port: int) -> LorgnetteError:
    hint = "name another port, or none: then the next free one is taken"
    return LorgnetteError(f"port {port} is taken", where="another program uses it", hint=hint)
