"""Checksums of data in pieces, computed from those of the pieces."""

from collections.abc import Sequence
from functools import lru_cache, reduce
from operator import xor

_POLYNOMIAL = 0xEDB88320


def combine_crc32(first: int, second: int, num_bytes: int) -> int:
    """The crc32 of two pieces of data, one after the other, from theirs. num_bytes: of the second.

    Takes 2 µs, and 2 ms the first time for each num_bytes.
    """
    return _apply(_shift_crc32(num_bytes), first) ^ second


@lru_cache(maxsize=64)
def _shift_crc32(num_bytes: int) -> tuple[int, ...]:
    """What `num_bytes` zeros do to a checksum, as a matrix over GF(2): the checksum that each of its 32 bits becomes.

    By repeated squaring, as zlib's crc32_combine.
    """
    shift = [1 << bit for bit in range(32)]
    power = [_POLYNOMIAL, *(1 << bit for bit in range(31))]  # of one zero bit
    num_bits = 8 * num_bytes
    while num_bits:
        if num_bits & 1:
            shift = [_apply(power, column) for column in shift]
        power = [_apply(power, column) for column in power]
        num_bits >>= 1
    return tuple(shift)


def _apply(matrix: Sequence[int], crc: int) -> int:
    return reduce(xor, (column for bit, column in enumerate(matrix) if crc >> bit & 1), 0)
