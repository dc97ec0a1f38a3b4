from pathlib import Path

import pytest

from lorgnette.data import text_files
from lorgnette.data.text_files import BrokenRow, decode_text, describe_type, parse_json, read_json, read_lines
from lorgnette.errors import LorgnetteError


def write_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    return path


def test_lines_keep_their_ends_and_lose_the_bom(tmp_path: Path) -> None:
    path = write_file(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n\xe2\x80\xa8d\x0be")
    assert list(read_lines(path)) == ["a\r\n", "b\r", "c\n", "\u2028d\x0be"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\ncaf\xc3\xa9 \xe9t\xe9\n", "not UTF-8: byte 0xe9 at byte 7 of line 2"),
        (b"\xed\xa0\x80", "byte 0xed at byte 1 of line 1"),
    ],
)
def test_the_error_for_no_utf8_names_line_and_byte(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(LorgnetteError, match="UTF-8") as caught:
        list(read_lines(write_file(tmp_path, content)))
    assert message in caught.value.message
    assert "UTF-8" in (caught.value.hint or "")


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match="cannot be read"):
        list(read_lines(tmp_path))


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b'[{"a": 1},\n {"b" 2}]', "line 2, column 7", "correct"),
        (b'{"a": 1}\n{"a": 2}', "Extra data at line 2, column 1", ".jsonl"),
        (b"", "line 1, column 1", "correct"),
        (b"[" * 100_000, "nested too deeply", "correct"),
        (b"[" + b"9" * 5000 + b"]", "broken JSON", "correct"),
        (b'["\xff"]', "not UTF-8", "UTF-8"),
    ],
)
def test_the_error_for_broken_json_names_line_and_column(
    tmp_path: Path, content: bytes, message: str, hint: str
) -> None:
    path = write_file(tmp_path, content)
    with pytest.raises(LorgnetteError) as caught:
        read_json(path)
    assert message in caught.value.message
    assert str(path) in (caught.value.where or "")
    assert hint in (caught.value.hint or "")


def test_json_values_and_the_words_for_their_types(tmp_path: Path) -> None:
    assert read_json(write_file(tmp_path, b"[1, null]")) == [1, None]
    assert parse_json('{"a": "\\u00e9"}') == {"a": "é"}
    names = [describe_type(value) for value in (None, True, 1, 1.5, "", [], {})]
    assert names == ["null", "true or false", "a number", "a number", "text", "a list", "an object"]


def test_a_small_text_is_decoded_as_a_whole() -> None:
    assert decode_text("\ufeffé\n".encode(), "a.txt") == "é\n"
    with pytest.raises(LorgnetteError, match=r"a\.txt is not UTF-8: byte 2"):
        decode_text(b"a\xe9", "a.txt")


def test_a_row_with_a_key_twice_is_broken_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_file(tmp_path, b'[{"a": 1, "a": 2}, {"b": 1}]')
    assert read_json(path) == [BrokenRow("the key 'a' is there twice"), {"b": 1}]
    path = write_file(tmp_path, b'{"images": [], "images": []}')
    with pytest.raises(LorgnetteError, match="the key 'images' is there twice") as caught:
        read_json(path)
    assert caught.value.where == str(path)


def test_a_file_that_fills_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_LENGTH", 10)
    path = write_file(tmp_path, b"0123456789\n")
    with pytest.raises(LorgnetteError, match="line 1 has more than 10 characters"):
        list(read_lines(path))
    monkeypatch.setattr(text_files, "MAX_LINE_LENGTH", 11)
    assert list(read_lines(path)) == ["0123456789\n"]
    monkeypatch.setattr(text_files, "MAX_JSON_LENGTH", 10)
    with pytest.raises(LorgnetteError, match=r"more than 10 characters .* name the file \.jsonl"):
        read_json(path)
