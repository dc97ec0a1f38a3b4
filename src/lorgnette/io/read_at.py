"""Reads a part of an open file into memory that is there already."""

import os


def read_at(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill memory (bytes) with what the file has from byte `offset` on, in as few calls as the system allows.

    Each call may lose Python's lock, for which the caller then waits. Raises OSError if the file cannot be read, or is
    too short.
    """
    done = 0
    while done < len(out):
        count = os.preadv(descriptor, [out[done:]], offset + done)
        if count == 0:
            raise OSError("the file has become shorter")
        done += count
