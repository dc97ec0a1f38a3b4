"""A data file → its lines or its JSON value, UTF-8 or a clear refusal.

Knows nothing about examples, columns or roles.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError

_UTF8_HINT = "save the file as UTF-8 (in Excel: 'CSV UTF-8')"


def read_lines(path: Path) -> Generator[str, None, None]:
    """Line by line with their ends, so that quoted line breaks stay as they are; a BOM is dropped."""
    try:
        # surrogateescape, because a strict decoder fails on a whole buffer and cannot say which line it was.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, start=1):
                _check_utf8(line, number, path)
                yield line
    except OSError as error:
        raise LorgnetteError(
            f"cannot be read: {error.strerror or error}", where=str(path), hint="check the path and its permissions"
        ) from error


def decode_text(content: bytes, name: str) -> str:
    """A small text in one piece; a BOM is dropped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LorgnetteError(f"{name} is not UTF-8: byte {error.start + 1}", hint=_UTF8_HINT) from error


def read_json(path: Path) -> Any:
    """The whole file, which must be one JSON value."""
    try:
        return parse_json("".join(read_lines(path)))
    except LorgnetteError as error:
        if error.where is not None:
            raise
        hint = " (one object per line? then name the file .jsonl)" if "Extra data" in error.message else ""
        raise LorgnetteError(error.message, where=str(path), hint=f"correct the file there{hint}") from error


def parse_json(text: str) -> Any:
    """One JSON value; the error says line and column, and leaves the file's name to the caller."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LorgnetteError(
            f"broken JSON: {error.msg} at line {error.lineno}, column {error.colno}", hint="correct it there"
        ) from error
    except RecursionError as error:
        raise LorgnetteError("broken JSON: nested too deeply", hint="flatten it") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise LorgnetteError(f"broken JSON: {error}", hint="shorten the number") from error


def describe_type(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _check_utf8(line: str, number: int, path: Path) -> None:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        place = len(line[: error.start].encode("utf-8")) + 1
        utf16 = number == 1 and place == 1 and byte in (0xFE, 0xFF)
        found = "the file is UTF-16, not UTF-8" if utf16 else "the file is not UTF-8"
        raise LorgnetteError(
            f"{found}: byte 0x{byte:02x} at byte {place} of line {number}",
            where=f"{path}, line {number}",
            hint=_UTF8_HINT,
        ) from error
