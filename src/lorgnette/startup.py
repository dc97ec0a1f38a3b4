"""Faster start: torch's libraries, CUDA and Triton on threads, kept bytecode, and no garbage collection while torch is
imported. Also when the command was started, and how torch's threads wait.

Imports no torch.
"""

import atexit
import ctypes
import gc
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from stat import S_ISDIR, S_IWGRP, S_IWOTH
from threading import Thread

from lorgnette.errors import LorgnetteError

_TORCH_LIBRARIES = {
    "libtorch_global_deps.so": os.RTLD_NOW | os.RTLD_GLOBAL,
    "libc10.so": os.RTLD_NOW,
    "libtorch_cpu.so": os.RTLD_NOW,
    "libc10_cuda.so": os.RTLD_NOW,
    "libtorch_cuda.so": os.RTLD_NOW,
}
"""With the flags that torch has; those without a GPU have fewer. The one with Python's own symbols is torch's part."""
EXTENSION_MODULES = (
    "_blake2", "_multiprocessing", "_queue", "_statistics", "_zoneinfo", "asyncio", "grp", "markupsafe._speedups",
    "mmap", "PIL._avif", "PIL._imaging", "PIL._imagingft", "PIL._webp", "ssl", "tokenizers",
)  # fmt: skip
"""Compiled modules that `train` imports before torch, with what they import. The system loads one library at a time:
the import of another would wait until torch's are loaded."""
_library_thread: Thread | None = None
_command_start: float | None = None


def check_system() -> None:
    """Raises LorgnetteError on native Windows, which lacks calls that lock files and measure memory."""
    if sys.platform == "win32":
        hint = "use WSL2, the Linux inside Windows: `wsl --install` in PowerShell, then install lorgnette there"
        raise LorgnetteError("lorgnette does not run on native Windows", where="this system", hint=hint)


def note_command_start() -> None:
    """Find out when the process was started: this is a command."""
    global _command_start  # noqa: PLW0603
    now = time.perf_counter()
    _command_start = now
    with suppress(OSError, ValueError, AttributeError):  # of a system without /proc or this clock
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        _command_start = now - max(seconds, 0.0)


def get_command_start() -> float | None:
    """The `time.perf_counter` of when the process was started; None if it is no command, but a notebook, say."""
    return _command_start


def set_missing_home() -> None:
    """Set HOME as Docker does where the user is a number without a home folder: many libraries fail without one."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"


def get_bytecode_folder() -> Path:
    """Where `keep_bytecode` keeps it; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorgnette" / "bytecode"


def keep_bytecode() -> None:
    """Let Python keep the bytecode of what it imports, if it would compile torch from source at every start.

    That takes seconds, and happens where packages are installed without bytecode and Python may not write it: their
    folder belongs to another user, or PYTHONDONTWRITEBYTECODE is set, as in many containers. Then it is kept in the
    user's cache folder, here and in the processes that this one starts. Does nothing where PYTHONPYCACHEPREFIX names a
    folder, and where the cache folder cannot be made, or others can write to it.
    """
    spec = find_spec("torch")
    if sys.pycache_prefix or spec is None or not spec.origin:
        return
    beside = Path(cache_from_source(spec.origin))
    written_to = beside.parent if beside.parent.exists() else beside.parent.parent
    if beside.exists() or (not sys.dont_write_bytecode and os.access(written_to, os.W_OK)):
        return
    try:
        folder = get_bytecode_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.lstat()
    except (OSError, RuntimeError):  # the user has no home folder
        return
    if S_ISDIR(stat.st_mode) and stat.st_uid == os.geteuid() and not stat.st_mode & (S_IWGRP | S_IWOTH):
        sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def hide_widget_warning() -> None:
    """Hide tqdm's warning in a notebook without ipywidgets: other libraries import it, lorgnette has its own bar."""
    warnings.filterwarnings("ignore", message="IProgress not found")


def start_cuda_init() -> None:
    """Start CUDA initialization and Triton's cache-key hashing on threads while torch is imported.

    Saves about 0.65 s. Without a driver, a device or Triton nothing happens: torch reports that when it is needed.
    """
    Thread(target=_init_context, name="driver", daemon=True).start()
    Thread(target=_hash_triton, name="triton", daemon=True).start()


def start_loading_torch() -> None:
    """Load torch's shared libraries on a thread, so that `import torch` finds them, while Python does other work.

    Does nothing if they are not where wheels have them: torch loads them itself. Python waits for the thread before it
    forks, and before it ends.
    """
    if sys.platform != "linux" or "torch" in sys.modules or (spec := find_spec("torch")) is None or not spec.origin:
        return
    global _library_thread  # noqa: PLW0603
    import_extension_modules()
    folder = Path(spec.origin).parent / "lib"
    _library_thread = thread = Thread(target=_load_libraries, args=(folder,), name="torch libraries")
    thread.start()
    os.register_at_fork(before=thread.join)  # a fork within `dlopen` would leave the loader's tables half written


def wait_for_libraries() -> None:
    """Wait until the thread of `start_loading_torch` has ended, if it was started."""
    if _library_thread is not None:
        _library_thread.join()


def import_extension_modules() -> None:
    """Import what would wait for torch's libraries. A Python or a Pillow may lack some."""
    for name in EXTENSION_MODULES:
        with suppress(ImportError):
            import_module(name)


def let_threads_sleep() -> None:
    """Let torch's threads on a CPU sleep while they wait for each other, unless the environment says what they do.

    Otherwise each spins on its core, and where another program needs that core, everything is ten times slower. What is
    computed stays the same. OpenMP reads this when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def freeze_gc() -> Iterator[None]:
    """Pause the garbage collector while importing and while reading rows, then let it ignore the new objects.

    Both allocate many long-lived objects, and collecting took a fifth of the time. Objects allocated until its end are
    not collected before the program ends, in a command never. Does nothing if torch is imported already: the caller,
    say a notebook, may then hold tensors whose memory only a collection frees.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # otherwise the first collection visits all of these objects
        if _command_start is None:
            # A program's end collects what it has left open, such as a file whose last lines are not written yet.
            atexit.unregister(gc.unfreeze)
            atexit.register(gc.unfreeze)
        gc.enable()


def _load_libraries(folder: Path) -> None:
    """`dlopen` as torch does it, but called so that other threads run meanwhile, which `ctypes.CDLL` does not."""
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name, flags in _TORCH_LIBRARIES.items():
        path = folder / name
        if path.exists() and not dlopen(os.fsencode(path), flags):
            return  # torch knows where else to look, or says what is wrong


def _init_context() -> None:
    """Create the primary context of the first visible device, the one that torch uses, with the driver alone."""
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0:
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)


def _hash_triton() -> None:
    """Compute the hash over Triton's own files. Triton keeps it and needs it before it reads its kernel cache."""
    with suppress(ImportError):
        from triton.runtime.cache import triton_key

        triton_key()
