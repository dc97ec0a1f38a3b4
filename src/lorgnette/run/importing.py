"""Imports that the garbage collector does not interrupt.

It runs whenever so many objects have been made, and importing torch makes some hundred thousand that all stay: a fifth
of the time it takes is the collector's, which looks at them again and again for nothing.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection meanwhile, nor later of what is there by then. Where torch was there before, nothing is done: it is
    somebody's notebook, say, with things in it that hold a device's memory until they are collected."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # else the first collection would look at all of it at once
        gc.enable()
