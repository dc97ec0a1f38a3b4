"""Reads text and JSON as UTF-8, with errors that name the byte or line.

Knows nothing about examples, columns or roles.
"""

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import BrokenRow, describe_type, parse_json, parse_rows

__all__ = ["BrokenRow", "decode_text", "describe_type", "parse_json", "read_json", "read_lines"]
MAX_LINE_LENGTH = 2**28
"""Characters in a line: a row of .jsonl may hold images."""
MAX_JSON_LENGTH = 2**31
"""Characters in a .json, which is read whole and takes several times its size in memory."""
_UTF8_HINT = "save the file as UTF-8 (in Excel: 'CSV UTF-8')"


def read_lines(path: Path) -> Generator[str, None, None]:
    """The lines with their line ends, so that quoted line breaks stay as they are; a BOM is dropped.

    Raises LorgnetteError for a line that is not UTF-8 or longer than MAX_LINE_LENGTH.
    """
    try:
        # surrogateescape: a strict decoder fails on a whole buffer and cannot name the line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_LENGTH + 1), ""), start=1):
                if len(line) > MAX_LINE_LENGTH:
                    message, hint = f"line {number} has more than {MAX_LINE_LENGTH:,} characters", "write shorter lines"
                    raise LorgnetteError(message, where=f"{path}, line {number}", hint=hint)
                try:
                    line.encode("utf-8")
                except UnicodeEncodeError as error:
                    byte = ord(line[error.start]) - 0xDC00
                    column = len(line[: error.start].encode("utf-8")) + 1
                    is_utf16 = number == 1 and column == 1 and byte in (0xFE, 0xFF)
                    fact = "the file is UTF-16, not UTF-8" if is_utf16 else "the file is not UTF-8"
                    message = f"{fact}: byte 0x{byte:02x} at byte {column} of line {number}"
                    raise LorgnetteError(message, where=f"{path}, line {number}", hint=_UTF8_HINT) from error
                yield line
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise LorgnetteError(message, where=str(path), hint="check the path and its permissions") from error


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
