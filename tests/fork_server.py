"""Runs Python programs without their import time: a server imports the slow packages once and forks for every program.

    python -P fork_server.py serve SOCKET MODULE,… [SOCKET MODULE,…]   import at the first request, then fork
    python -I -S fork_server.py run SOCKET PROGRAM [ARGUMENT …]        PROGRAM: a script's path or a module's name

`run` behaves like `python PROGRAM ARGUMENT …`: same folder, environment, standard streams, signals and exit status.
If `run` is killed, its program is killed too, before its standard streams close. The second socket's programs find the
modules of both lists imported. What a package does while it is imported happens only in the server; the tests of that
start a process of their own.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import sys
import traceback
from typing import Any

Listener = tuple[socket.socket, list[str]]


def serve(listeners: list[Listener]) -> None:
    """Answer requests until the parent process ends: import the modules at the first one, then fork for each."""
    (listener, modules), *rest = listeners
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        ready, _, _ = select.select([listener, *(socket for socket, _ in rest)], [], [], 1.0)
        if os.getppid() != parent:
            os._exit(0)
        if not ready:
            continue
        if modules:
            import_all(modules)
            modules.clear()
        if ready != [listener]:  # hand the other sockets to a child, which inherits the imports
            if not os.fork():
                listener.close()
                serve(rest)
            for other, _ in rest:
                other.close()
            rest = []
            continue
        connection, _ = listener.accept()
        if not os.fork():
            for other, _ in listeners:
                other.close()
            supervise(connection)
        connection.close()


def import_all(modules: list[str]) -> None:
    gc.disable()  # imports leave little to collect, and much to go through
    for module in modules:
        with contextlib.suppress(ImportError):  # of an optional package; the program that needs it will say so
            importlib.import_module(module)
    if "transformers.conversion_mapping" in sys.modules:  # it compiles a thousand patterns for the first model
        sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("qwen2_vl")
    if templates := sys.modules.get("lorgnette.report.html.templates"):
        for path in pathlib.Path(str(templates.__file__)).parent.glob("*.j2"):
            with contextlib.suppress(templates.jinja2.UndefinedError):  # it lacks its values, but is compiled
                templates.render(path.name)
    gc.freeze()  # a collection in a child would copy the pages of all these objects
    gc.enable()


def listen(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    return listener


def supervise(connection: socket.socket) -> None:
    """Fork the program, pass the signals on to it, and report its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i", ancillary[0][2])
    request = json.loads(message)
    child = os.fork()
    if not child:
        connection.close()
        start_program(request, streams)
    child_end = os.pidfd_open(child)
    while child_end not in select.select([child_end, connection], [], [])[0]:
        numbers = connection.recv(16)
        for number in numbers or [signal.SIGKILL]:  # nothing: `run` was killed
            os.kill(child, number)
        if not numbers:
            break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def start_program(request: dict[str, Any], streams: "array.array[int]") -> None:
    """Become the requested program."""
    status = 1
    try:
        for target, stream in enumerate(streams):
            os.dup2(stream, target)
            os.close(stream)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if constants := sys.modules.get("huggingface_hub.constants"):
            importlib.reload(constants)  # it reads the environment once
        if temporary := sys.modules.get("tempfile"):
            temporary.tempdir = None  # so does it
        sys.executable = os.environ.get("FORK_EXECUTABLE", sys.executable)
        program, *arguments = request["command"]
        sys.argv = [program, *arguments]
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            status = -signal.SIGINT
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        end_with(status)


def end_with(status: int) -> None:
    """End this process with an exit status; a negative one is a signal."""
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other action
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def run(address: str, command: list[str]) -> int:
    """Have the server run the command. Returns its exit status, negative for a signal."""
    request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        streams = array.array("i", (0, 1, 2))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
        connection.sendmsg([json.dumps(request).encode()], ancillary)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: connection.sendall(bytes([number])))
        return int(connection.recv(16) or 1)


if __name__ == "__main__":
    action, *rest = sys.argv[1:]
    if action == "serve":
        serve([(listen(address), names.split(",")) for address, names in zip(rest[::2], rest[1::2], strict=True)])
    end_with(run(rest[0], rest[1:]))
