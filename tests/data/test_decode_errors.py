import errno
import os
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from lorgnette.data.decode_errors import explain_decode_error


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer", "git lfs pull"),
        (b"  <!DOCTYPE html><html>", "web page", "download the picture again"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "web page", "download"),
        (b"<?xml version='1.0'?><svg>", "SVG", "PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC", "convert to JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC", "convert to JPEG or PNG"),
        (b"%PDF-1.7", "PDF", "convert"),
        (b"\0" * 600, "zeros", "again"),
        (b"\x89PNG\r\n\x1a\nrubbish", "damaged", "again"),
        (b"plain words", "not a picture", "JPEG or PNG"),
    ],
)
def test_what_stands_there_instead(tmp_path: Path, content: bytes, what: str, remedy: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    error = explain_decode_error(path, UnidentifiedImageError("cannot identify image file"))
    assert what in error.message
    assert remedy in (error.hint or "")
    assert error.where == str(path)


@pytest.mark.parametrize(
    ("raised", "what"),
    [
        (Image.DecompressionBombError("too many"), "too large"),
        (MemoryError(), "too large"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "cannot be read: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (OSError("image file is truncated"), "cannot be decoded: image file is truncated"),
        (ValueError("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"), "oversized text chunk"),
        (KeyError(), "KeyError"),
    ],
)
def test_what_was_said(tmp_path: Path, raised: Exception, what: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    assert what in explain_decode_error(path, raised).message


def test_a_file_that_has_vanished_meanwhile(tmp_path: Path) -> None:
    assert explain_decode_error(tmp_path / "gone.jpg", UnidentifiedImageError("?")).hint
