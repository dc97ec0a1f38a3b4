"""Checksums that are combined equal those of zlib."""

import os
import zlib

import pytest

from lorgnette.io.crc32 import combine_crc32


@pytest.mark.parametrize("length", [0, 1, 2, 3, 255, 4096, 307_200, 5_000_001])
def test_combined_checksums_equal_zlibs(length: int) -> None:
    first, second = os.urandom(77), os.urandom(length)
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), length)
    assert combined == zlib.crc32(first + second)
    assert combine_crc32(0, zlib.crc32(second), length) == zlib.crc32(second)
    assert combine_crc32(zlib.crc32(first), zlib.crc32(second), length + 1) != combined
