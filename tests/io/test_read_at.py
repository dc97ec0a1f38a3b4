"""A part of a file is read whole, also where the system gives it in pieces, or is an error."""

import os
from pathlib import Path

import pytest

from lorgnette.io.read_at import read_at


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_a_part_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    content, preadv = os.urandom(50), os.preadv
    (tmp_path / "file").write_bytes(content)
    monkeypatch.setattr(os, "preadv", lambda number, parts, start: preadv(number, [parts[0][:piece]], start))
    with open(tmp_path / "file", "rb") as file:
        out = bytearray(20)
        read_at(file.fileno(), memoryview(out), 25)
        assert out == content[25:45]
        assert out != content[24:44]
        with pytest.raises(OSError, match="has become shorter"):
            read_at(file.fileno(), memoryview(out), 31)
