"""What takes its time while Python imports torch, though it needs neither: CUDA's context, and Triton's fingerprint of
itself. Two thirds of a second that nothing has to wait for.
"""

import ctypes
from threading import Thread


def start_cuda_init() -> None:
    """Begin both on threads. Where there is no driver, no device or no Triton nothing happens: it is for torch to say
    so, if a device is asked for."""
    Thread(target=_init_context, name="driver", daemon=True).start()
    Thread(target=_hash_triton, name="triton", daemon=True).start()


def _init_context() -> None:
    """The one that torch will use, the first visible device's primary one, made by the driver itself."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    context = ctypes.c_void_p()
    if driver.cuInit(0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)


def _hash_triton() -> None:
    """A hash over all of its own files, which it wants before it looks a kernel up, and keeps once it is made."""
    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        return
    triton_key()
