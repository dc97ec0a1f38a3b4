"""Compiles the Triton kernels of a command in other processes, on all cores, while this one imports torch and reads.

    start(…)       at the start of the command: a process that imports torch, if nothing has been compiled yet
    request(…)     once it is known which model computes with which settings: what to compile
    wait()         before the first launch of a kernel

Where everything has been compiled, a marker beside Triton's kernels says so, and no process is started. What no other
process has compiled, Triton compiles at the first launch, so whatever fails here costs time only. The process is
lorgnette.inference.compile_worker. Needs no torch.
"""

import hashlib
import json
import os
import platform
import select
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from lorgnette.errors import LorgnetteError
from lorgnette.io.module_process import start_module
from lorgnette.io.parse import parse_json

_PROCESS = "lorgnette.inference.compile_worker"
_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("kernels", "models", "planning", "lora", "engine", "inference")
"""Packages whose code decides which kernels are launched, and with what."""
_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Of NVIDIA's driver on Linux, and in Windows' Linux."""
_CARDS = Path("/proc/driver/nvidia/gpus")
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """What a command will compute. lora: `LoraSettings` of the adapter as plain values, None without one; is_trained:
    steps are taken, not only answers given. dtype: as of `select_dtype`. quantization: as of Settings. slots: of the KV
    caches of its answers."""

    model: str
    dtype: str
    lora: Mapping[str, Any] | None
    quantization: Literal["nf4"] | None
    slots: tuple[int, ...]
    is_trained: bool = True


class KernelCompiler:
    """The processes, as the command sees them. found: kernels to compile, 0 until that is known; compiled: those that
    are. error: why they failed, or None. is_done: they will not do more. is_stopped: `stop` came before that."""

    def __init__(self) -> None:
        self.found = self.compiled = 0
        self.error: str | None = None
        self.is_requested = self.is_done = self.is_stopped = False
        self._lock, self._unread = Lock(), b""
        # One thread: the process forks others.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process, self._requests, self._answers = start_module(_PROCESS, environment=single, hides_errors=True)
        self._poll = select.poll()  # not select.select: a notebook may have many files open
        self._poll.register(self._answers, select.POLLIN)

    def request(self, request: KernelRequest, marker: Path) -> None:
        """Let them compile. marker: the file to write when all is done."""
        self.is_requested = True
        with suppress(BrokenPipeError):  # `poll` then finds that it has ended
            self._requests.write(json.dumps({**asdict(request), "marker": str(marker)}).encode() + b"\n")
            self._requests.flush()

    def poll(self, seconds: float) -> None:
        """Wait at most `seconds` for what the processes write, and read it. Several threads may call it."""
        with self._lock:
            if self.is_done or not self._poll.poll(1000 * seconds):
                return
            chunk = os.read(self._answers.fileno(), 65536)
            *lines, self._unread = (self._unread + chunk).split(b"\n")
            for line in lines:
                answer = parse_json(line)
                self.found, self.compiled, self.error = answer["found"], answer["compiled"], answer["error"]
                self.is_done = answer["is_done"]
            if not chunk:
                self.error, self.is_done = f"their process ended with status {self._process.wait()}", True

    def stop(self) -> None:
        """End the processes, wherever they are, and wait until they have ended."""
        with self._lock:
            self.is_stopped, self.is_done = not self.is_done, True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        self._process.wait()


_compilers: list[KernelCompiler] = []
"""That of the command which runs, if there is one: Triton's cache is one for all of the process, too."""


def is_wanted(device: str, engine: str) -> bool:
    """Whether Triton may compile in this process with these settings: for a GPU, and of several processes that torchrun
    has started on a machine in the first."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    return is_first and device in ("auto", "cuda") and engine != "reference" and _has_gpu()


def start(device: str, engine: str) -> None:
    """Start a process before it is known what to compile, if this GPU has compiled nothing yet; end one that is not
    wanted. device, engine: settings."""
    if not is_wanted(device, engine):
        stop()
    elif not _compilers and not any(_list_markers()):
        _start_process()


def request(request: KernelRequest) -> None:
    """Compile what this command needs, unless it has been compiled. A process that is not needed ends."""
    if is_compiled(request):
        stop()
        return
    if not _compilers:
        _start_process()
    for compiler in _compilers:
        compiler.request(request, find_marker(request))


def is_compiled(request: KernelRequest) -> bool:
    """Whether Triton's cache has everything of the request."""
    known = read_marker(find_marker(request))
    return known is not None and known.issuperset(request.slots)


def get_compiler() -> KernelCompiler | None:
    """The processes that compile what was requested; None if nothing has to be compiled, or the system starts none."""
    return next((compiler for compiler in _compilers if compiler.is_requested), None)


def wait() -> bool:
    """Wait until everything is compiled, or has failed; False if it was stopped. Several threads may wait."""
    compiler = get_compiler()
    while compiler and not compiler.is_done:
        compiler.poll(POLL_SECONDS)
    return not (compiler and compiler.is_stopped)


def stop() -> None:
    """End the processes."""
    while _compilers:
        _compilers.pop().stop()


def _start_process() -> None:
    with suppress(OSError):  # no memory for a process, say: Triton compiles at the first launches
        _compilers.append(KernelCompiler())


def find_marker(request: KernelRequest) -> Path:
    """The file that says that everything of the request has been compiled, for these sources and this GPU; it lists the
    slots."""
    config = (Path(request.model) / "config.json").read_bytes()
    fields = {name: value for name, value in asdict(request).items() if name not in ("model", "slots")}
    return _find_cache() / f"{_build_marker_prefix()}-{_hash([fields, config.decode()])}"


def read_marker(marker: Path) -> set[int] | None:
    """The slots of the caches for which everything is compiled; None if nothing is, or the file is damaged."""
    try:
        return set(parse_json(marker.read_bytes()))
    except (OSError, LorgnetteError, TypeError):
        return None


def _list_markers() -> Iterable[Path]:
    return _find_cache().glob(f"{_build_marker_prefix()}-*")


def _build_marker_prefix() -> str:
    """The common part of all markers of these sources, libraries and GPUs."""
    sources = [path for package in _SOURCES for path in sorted((_PACKAGE / package).rglob("*.py"))]
    libraries = [Path(spec.origin) for name in ("torch", "triton") if (spec := find_spec(name)) and spec.origin]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in [*sources, *libraries]]
    lines = [path.read_text().splitlines() for path in sorted(_CARDS.glob("*/information"))]
    models = [line for card in lines for line in card if line.startswith("Model")]
    environment = [(key, value) for key, value in sorted(os.environ.items()) if key.startswith(("TRITON_", "CUDA_VIS"))]
    return f"lorgnette-{_hash([files, models, environment, platform.python_version()])}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _find_cache() -> Path:
    """Triton's folder of kernels."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    return Path(os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache"))


def _has_gpu() -> bool:
    """Whether there may be a GPU for which Triton compiles: its driver, and Triton."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not is_hidden and any(path.exists() for path in _DRIVER_FILES) and find_spec("triton") is not None
