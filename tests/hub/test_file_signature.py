import io
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from lorgnette.errors import SourceError
from lorgnette.hub.file_signature import check_file
from lorgnette.io.image_signature import detect_image_format

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]


def encoded(format: str) -> bytes:
    out = io.BytesIO()
    PIL.Image.effect_noise((40, 40), 50).save(out, format)
    return out.getvalue()


def judged(content: bytes, name: str, folder: Path) -> str:
    (folder / "f").write_bytes(content)
    try:
        check_file(folder / "f", name, where="x")
    except SourceError as error:
        return error.message
    return ""


@pytest.mark.parametrize("format", FORMATS)
def test_image_formats_are_detected_and_cut_files_found(format: str, tmp_path: Path) -> None:
    content = encoded(format)
    assert detect_image_format(content[:12]) == format.lower()
    assert judged(content, "a.jpg", tmp_path) == ""
    assert judged(content[:-300], "a.jpg", tmp_path) == "the image is cut off"


def test_bytes_after_a_complete_image_are_accepted(tmp_path: Path) -> None:
    assert judged(encoded("JPEG") + b"\0\0 camera notes", "a.jpeg", tmp_path) == ""


@pytest.mark.parametrize(
    "page",
    [b"<!DOCTYPE html>", b"\n <HTML>", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", b"\xef\xbb\xbf<html>"],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.csv", "a.safetensors", "a.csv.zip"])
def test_web_pages_are_named(page: bytes, name: str, tmp_path: Path) -> None:
    assert judged(page, name, tmp_path) == f"got a web page instead of {name}"


def test_other_files(tmp_path: Path) -> None:
    assert judged(b"PK\x03\x04", "a.zip", tmp_path) == ""
    assert judged(b"nothing", "a.zip", tmp_path) == "not a zip file: it starts with 'nothing'"
    assert judged(b"PAR1", "a.parquet", tmp_path) == ""
    assert judged(b"\0\1", "a.jpg", tmp_path) == "not an image: it starts with the bytes 00 01"
    assert judged(b"", "a.png", tmp_path) == "not an image: it is empty"
    assert judged(b"whatever", "config.json", tmp_path) == ""
    assert judged(b"<html>", "a.html", tmp_path) == ""


def test_the_check_reads_little(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.Image, "open", refuse)
    for format in ("JPEG", "PNG", "GIF", "WEBP"):
        assert judged(encoded(format), "a.jpg", tmp_path) == ""
