"""Compiles to bytecode, in other processes, the modules that a command will import, where none are compiled yet.

Python compiles a module when it is imported: the first command on a machine would compile 1,500 of them one after
another, for seconds, and the process that compiles its kernels would do the same. Here a process finds the modules: in
the import statements of those that are compiled, beginning with `MODULES`. Processes that it forks compile them as
Python does. Python itself compiles what it imports before they have, so whatever fails here costs time only.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, find_spec, resolve_name
from types import CodeType
from typing import TYPE_CHECKING, Any

from lorgnette.io.cores import count_cores

if TYPE_CHECKING:
    from socket import socket

MODULES = (
    "lorgnette.cli", "pydantic.type_adapter", "pydantic.dataclasses", "lorgnette.commands.train",
    "concurrent.futures.thread", "lorgnette.training.run", "concurrent.futures.process", "numpy.ma",
    "lorgnette.inference.compile_worker", "lorgnette.inference.dry_run", "lorgnette.kernels.record_launches",
    "triton.compiler.code_generator", "triton.backends.nvidia.compiler", "triton.backends.nvidia.driver",
    "triton.backends.amd.compiler", "triton.backends.amd.driver", "triton.language.extra.cuda.libdevice",
    "triton.language.extra.hip.libdevice", "triton.experimental.gluon",
)  # fmt: skip
"""What a training imports by no statement of a module: in functions, on first use of a name, by a computed name. The
rest follows from these."""
_FREE_CORES = 2
"""For the command, and for the process that compiles its kernels."""
_MIN_FREE_BYTES = 1 << 26
_MAX_MESSAGE = 1 << 20
_MAX_SECONDS = 10.0
"""No module takes as long: a process was killed."""


def start_compiling_modules(modules: Iterable[str] = MODULES) -> None:
    """Start the processes, and do not wait, if torch is not compiled yet and Python can keep bytecode.

    They end when all is compiled, on Ctrl-C, and soon after this process. One for every core but two; none outside of
    Linux, or if the system starts none. Of several processes that torchrun has started on a machine, the first starts
    them. Call it before there are threads.
    """
    num_processes = count_cores() - _FREE_CORES
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if sys.platform != "linux" or sys.dont_write_bytecode or num_processes < 1 or not is_first:
        return
    if "torch" in sys.modules or (torch := find_spec("torch")) is None or not torch.origin or is_compiled(torch.origin):
        return
    if not can_keep_bytecode(torch.origin):  # every command would compile everything, in vain
        return
    with suppress(OSError):  # the limit of processes is reached
        # Its parent ends at once: nobody has to wait for it.
        os.waitpid(_fork(_fork, _share_modules, modules, num_processes, os.getpid()), 0)


def is_compiled(source: str) -> bool:
    """Whether the bytecode of a source is kept, and is that of the source as it is now."""
    try:
        stat = os.stat(source)
        with open(cache_from_source(source), "rb") as file:
            header = file.read(16)
    except OSError:
        return False
    of_source = b"".join(int(x).to_bytes(8, "little")[:4] for x in (0, stat.st_mtime, stat.st_size))
    is_checked_by_hash = header[4:8] != bytes(4)
    return header[:4] == MAGIC_NUMBER and (is_checked_by_hash or header[4:] == of_source)


def can_keep_bytecode(source: str) -> bool:
    """Whether the folder of its bytecode can be written or made, on a disk with space for that of a training."""
    folder = os.path.abspath(os.path.dirname(cache_from_source(source)))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        return False
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize >= _MIN_FREE_BYTES


def list_imports(code: CodeType, package: str) -> Iterator[str]:
    """Names of what a module's code may import, in order: modules, and perhaps names in them.

    package: in which the module is; its own name if it is one. Not what is imported in functions, or for type checkers.
    """
    import dis

    loads, end = deque[Any](maxlen=2), 0
    for step in dis.get_instructions(code):
        if step.offset < end:
            continue
        if step.opname == "IMPORT_NAME":
            level, names = loads
            module = resolve_name("." * level + step.argval, package)
            yield from (module, *(f"{module}.{name}" for name in names or () if name != "*"))
        elif step.opname.startswith("LOAD_"):
            loads.append(step.argval)
        elif "IF_FALSE" in step.opname and loads and loads[-1] == "TYPE_CHECKING":
            end = step.argval


class ModuleSearch:
    """Finds modules by name, each once: those with a source, and the packages in which they are."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_new(self, name: str) -> Iterator[ModuleSpec]:
        """The packages of a module, and the module, if they are new. There may be no module of that name."""
        path, full_name = None, ""
        for part in name.split("."):
            full_name = f"{full_name}.{part}" if full_name else part
            if full_name not in self._specs:
                with suppress(KeyError):  # a namespace in another can be read only when that is imported
                    self._specs[full_name] = PathFinder.find_spec(full_name, path)
                spec = self._specs.setdefault(full_name, None)
                if spec and isinstance(spec.loader, SourceFileLoader):
                    yield spec
            known = self._specs[full_name]
            if known is None or known.submodule_search_locations is None:
                return
            path = known.submodule_search_locations


def _share_modules(modules: Iterable[str], num_processes: int, command: int) -> None:
    """Find all modules and let processes compile them. command: the process that needs them."""
    empty = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # who reads what the command writes need not wait for this process
        os.dup2(empty, number)
    import socket

    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # any of them takes the next message
    processes = [_fork(_compile_modules, own, other) for _ in range(num_processes)]
    other.close()
    own.settimeout(_MAX_SECONDS)
    search = ModuleSearch()
    found = deque(spec for name in modules for spec in search.find_new(name))
    num_sent = 0
    while found or num_sent:
        while found and num_sent < 2 * num_processes:
            spec = found.popleft()
            own.send("\n".join((spec.name, spec.origin or "", spec.parent or "")).encode())
            num_sent += 1
        names = own.recv(_MAX_MESSAGE).decode().split()
        num_sent -= 1
        os.kill(command, 0)  # raises an error if it has ended
        # Depth first, as Python imports them.
        found.extendleft(reversed([spec for name in names for spec in search.find_new(name)]))
    own.close()
    for process in processes:
        os.waitpid(process, 0)


def _compile_modules(own: "socket", other: "socket") -> None:
    """Compile what is sent, and answer with the imports, until the other end is closed."""
    own.close()
    while message := other.recv(_MAX_MESSAGE):
        name, path, package = message.decode().split("\n")
        imports = list[str]()
        with suppress(Exception):  # Python says what is wrong with it if it is imported
            code = SourceFileLoader(name, path).get_code(name)  # keeps it, as an import does
            assert code is not None
            imports += list_imports(code, package)
        other.send("\n".join(["", *imports, ""]).encode())  # an empty message would be the end


def _fork(function: Callable[..., object], *arguments: object) -> int:
    """Call a function in a new process, which then ends. Returns its id. Raises OSError if the system starts none."""
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # this process's handlers are not for the other
    try:
        if child := os.fork():
            return child
        try:
            for number in stops:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            function(*arguments)
        finally:
            os._exit(0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
