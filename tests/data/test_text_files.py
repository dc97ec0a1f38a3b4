from pathlib import Path

import pytest

from lorgnette.data.text_files import decode_text, describe_type, parse_json, read_json, read_lines
from lorgnette.errors import LorgnetteError


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    return path


def test_lines_keep_their_ends_and_lose_the_bom(tmp_path: Path) -> None:
    path = file(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n\xe2\x80\xa8d\x0be")
    assert list(read_lines(path)) == ["a\r\n", "b\r", "c\n", "\u2028d\x0be"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"fine\ncaf\xc3\xa9 \xe9t\xe9\n", "not UTF-8: byte 0xe9 at byte 7 of line 2"),
        ("a,b\n".encode("utf-16"), "UTF-16"),
        (b"\xed\xa0\x80", "byte 0xed at byte 1 of line 1"),
    ],
)
def test_not_utf8_is_named_by_line_and_byte(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(LorgnetteError, match="UTF-8") as caught:
        list(read_lines(file(tmp_path, content)))
    assert what in caught.value.message
    assert "UTF-8" in (caught.value.hint or "")


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match="cannot be read"):
        list(read_lines(tmp_path))


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b'[{"a": 1},\n {"b" 2}]', "line 2, column 7", "correct"),
        (b'{"a": 1}\n{"a": 2}', "Extra data at line 2, column 1", ".jsonl"),
        (b"", "line 1, column 1", "correct"),
        (b"[" * 100_000, "nested too deeply", "correct"),
        (b"[" + b"9" * 5000 + b"]", "broken JSON", "correct"),
        (b'["\xff"]', "not UTF-8", "UTF-8"),
    ],
)
def test_what_is_not_json(tmp_path: Path, content: bytes, what: str, remedy: str) -> None:
    path = file(tmp_path, content)
    with pytest.raises(LorgnetteError) as caught:
        read_json(path)
    assert what in caught.value.message
    assert str(path) in (caught.value.where or "")
    assert remedy in (caught.value.hint or "")


def test_values_and_their_names(tmp_path: Path) -> None:
    assert read_json(file(tmp_path, b"[1, null]")) == [1, None]
    assert parse_json('{"a": "\\u00e9"}') == {"a": "é"}
    named = [describe_type(value) for value in (None, True, 1, 1.5, "", [], {})]
    assert named == ["null", "true or false", "a number", "a number", "text", "a list", "an object"]


def test_a_small_text_in_one_piece() -> None:
    assert decode_text("\ufeffé\n".encode(), "a.txt") == "é\n"
    with pytest.raises(LorgnetteError, match=r"a\.txt is not UTF-8: byte 2"):
        decode_text(b"a\xe9", "a.txt")
