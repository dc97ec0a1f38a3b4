"""CUDA's context, made by the driver while Python imports torch: a third of a second that nothing has to wait for."""

import ctypes
from threading import Thread


def wake() -> None:
    """Begin to make the context that torch will use, the first visible device's primary one, on a thread.

    Where there is no driver or no device nothing happens: it is for torch to say so, if a device is asked for.
    """
    Thread(target=_wake, name="driver", daemon=True).start()


def _wake() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    context = ctypes.c_void_p()
    if driver.cuInit(0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
