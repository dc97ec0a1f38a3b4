"""Faster start: CUDA and Triton initialize on threads, and the garbage collector pauses while torch is imported. How
torch's threads wait.

Knows nothing about torch.
"""

import ctypes
import gc
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from lorgnette.errors import LorgnetteError

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


def hide_widget_warning() -> None:
    """Hide tqdm's warning in a notebook without ipywidgets: other libraries import it, lorgnette has its own bar."""
    warnings.filterwarnings("ignore", message="IProgress not found")


def start_cuda_init() -> None:
    """Start CUDA initialization and Triton's cache-key hashing on threads while torch is imported.

    Saves about 0.65 s. Without a driver, a device or Triton nothing happens: torch reports that when it is needed.
    """
    Thread(target=_init_context, name="driver", daemon=True).start()
    Thread(target=_hash_triton, name="triton", daemon=True).start()


def let_threads_sleep() -> None:
    """Let torch's threads on a CPU sleep while they wait for each other, unless the environment says what they do.

    Otherwise each spins on its core, and where another program needs that core, everything is ten times slower. What is
    computed stays the same. OpenMP reads this when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector while importing and while reading rows.

    Both allocate many long-lived objects, and collecting took a fifth of the time. Objects allocated inside are never
    collected. Does nothing if torch is imported already: the caller, say a notebook, may then hold tensors whose memory
    only a collection frees.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # otherwise the first collection visits all of these objects
        gc.enable()


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
