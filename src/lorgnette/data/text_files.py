"""Reads text and JSON as UTF-8 or UTF-16, with errors that name the byte or line.

Knows nothing about examples, columns or roles.
"""

import codecs
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lorgnette.data.legacy_encodings import find_encoding
from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import BrokenRow, describe_type, parse_json, parse_rows

__all__ = ["BrokenRow", "decode_text", "describe_type", "detect_encoding", "parse_json", "read_json", "read_lines"]
MAX_LINE_LENGTH = 2**28
"""Characters in a line: a row of .jsonl may hold images."""
MAX_JSON_LENGTH = 2**31
"""Characters in a .json, which is read whole and takes several times its size in memory."""
_HEAD_BYTES, _MAX_LEGACY_BYTES = 4096, 2**25
_UTF8_HINT = "save the file as UTF-8 (in Excel: 'CSV UTF-8')"


class Encoding(NamedTuple):
    """codec: Python's name for it. name: for people."""

    codec: str
    name: str


_UTF8 = Encoding("utf-8-sig", "UTF-8")
_UTF16_LE, _UTF16_BE = Encoding("utf-16-le", "UTF-16"), Encoding("utf-16-be", "UTF-16")
_BOMS = {
    codecs.BOM_UTF32_LE: Encoding("utf-32", "UTF-32"),  # first: it begins like UTF-16's
    codecs.BOM_UTF32_BE: Encoding("utf-32", "UTF-32"),
    codecs.BOM_UTF16_LE: Encoding("utf-16", "UTF-16"),
    codecs.BOM_UTF16_BE: Encoding("utf-16", "UTF-16"),
}


def detect_encoding(path: Path) -> Encoding:
    """UTF-16 or UTF-32 if the file's first bytes show it, else UTF-8."""
    head = _read_head(path)
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding
    # UTF-16 without a mark: every other byte of its ASCII letters is 0.
    zeros = [head[start::2].count(0) for start in (0, 1)]
    if max(zeros) > len(head) / 4 and min(zeros) == 0 and len(head) % 2 == 0:
        return _UTF16_BE if zeros[0] else _UTF16_LE
    return _UTF8


def detect_table_encoding(path: Path) -> Encoding:
    """As `detect_encoding`; for a table that is not Unicode, the only encoding in which it can be read, if there is
    one. Reads the whole file."""
    encoding, decoder = detect_encoding(path), codecs.getincrementaldecoder("utf-8")()
    if encoding != _UTF8:
        return encoding
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        with path.open("rb") as file:
            content = file.read(_MAX_LEGACY_BYTES + 1)
        if len(content) <= _MAX_LEGACY_BYTES and (found := find_encoding(content)):
            return Encoding(*found)
    except OSError as error:
        raise _explain_system_error(error, path) from error
    return _UTF8


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise _explain_system_error(error, path) from error


def _explain_system_error(error: OSError, path: Path) -> LorgnetteError:
    message = f"cannot be read: {error.strerror or error}"
    return LorgnetteError(message, where=str(path), hint="check the path and its permissions")


def read_lines(path: Path, encoding: Encoding | None = None) -> Generator[str, None, None]:
    """The lines with their line ends, so that quoted line breaks stay as they are; a BOM is dropped.

    encoding: by default `detect_encoding`. Raises LorgnetteError for a line that is not in it or is longer than
    MAX_LINE_LENGTH.
    """
    encoding = encoding or detect_encoding(path)
    try:
        # surrogateescape: a strict decoder fails on a whole buffer and cannot name the line.
        errors = "surrogateescape" if encoding == _UTF8 else "strict"
        with path.open(encoding=encoding.codec, errors=errors, newline="") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_LENGTH + 1), ""), start=1):
                if len(line) > MAX_LINE_LENGTH:
                    message, hint = f"line {number} has more than {MAX_LINE_LENGTH:,} characters", "write shorter lines"
                    raise LorgnetteError(message, where=f"{path}, line {number}", hint=hint)
                if not line.isascii():
                    _check_line(line, number, path)
                yield line
    except OSError as error:
        raise _explain_system_error(error, path) from error
    except UnicodeError as error:
        message = f"the file is no whole {encoding.name}: {error}"
        raise LorgnetteError(message, where=str(path), hint=_UTF8_HINT) from error


def _check_line(line: str, number: int, path: Path) -> None:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        column = len(line[: error.start].encode("utf-8")) + 1
        message = f"the file is not UTF-8: byte 0x{byte:02x} at byte {column} of line {number}"
        raise LorgnetteError(message, where=f"{path}, line {number}", hint=_UTF8_HINT) from error


def decode_text(content: bytes, name: str) -> str:
    """A small text as a whole; a BOM is dropped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LorgnetteError(f"{name} is not UTF-8: byte {error.start + 1}", hint=_UTF8_HINT) from error


def read_json(path: Path) -> Any:
    """The whole file as one JSON value; a row with a key twice is a BrokenRow in it."""
    try:
        return parse_rows("".join(_stream_lines(path)))
    except LorgnetteError as error:
        if error.where is not None:
            raise
        advice = " (one object per line? then name the file .jsonl)" if "Extra data" in error.message else ""
        raise LorgnetteError(error.message, where=str(path), hint=f"correct the file there{advice}") from error


def _stream_lines(path: Path) -> Iterator[str]:
    length = 0
    for line in read_lines(path):
        length += len(line)
        if length > MAX_JSON_LENGTH:
            message = f"the file has more than {MAX_JSON_LENGTH:,} characters"
            hint = "write one object per line and name the file .jsonl: it is read row by row"
            raise LorgnetteError(message, where=str(path), hint=hint)
        yield line
