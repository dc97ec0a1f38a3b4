import errno
import os
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from lorgnette.data.images import explain_decode_error


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer", "git lfs pull"),
        (b"  <!DOCTYPE html><html>", "web page", "download the image again"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>", "web page", "download"),
        (b"<?xml version='1.0'?><svg>", "SVG", "PNG"),
        (b"%PDF-1.7", "PDF", "convert"),
        (b"\0" * 600, "zeros", "again"),
        (b"\x89PNG\r\n\x1a\nrubbish", "damaged", "again"),
        (b"plain words", "not an image", "JPEG or PNG"),
    ],
)
def test_the_error_says_what_the_file_is_instead(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    error = explain_decode_error(path, UnidentifiedImageError("cannot identify image file"))
    assert message in error.message
    assert hint in (error.hint or "")
    assert error.where == str(path)


@pytest.mark.parametrize(
    ("cause", "message"),
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
def test_the_error_repeats_the_cause(tmp_path: Path, cause: Exception, message: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    assert message in explain_decode_error(path, cause).message


def test_a_file_that_no_longer_exists_still_has_an_error(tmp_path: Path) -> None:
    assert explain_decode_error(tmp_path / "gone.jpg", UnidentifiedImageError("?")).hint
