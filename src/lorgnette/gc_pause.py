"""Python's garbage collector, kept from what makes very many objects that all stay: imports, and rows that are read.

It runs whenever so many objects have been made, and looks at them again and again for nothing: a fifth of the time.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
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
