"""Reads text and JSON as UTF-8, with errors that name the byte or line.

Knows nothing about examples, columns or roles.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError

_UTF8_HINT = "save the file as UTF-8 (in Excel: 'CSV UTF-8')"


def read_lines(path: Path) -> Generator[str, None, None]:
    """The lines with their line ends, so that quoted line breaks stay as they are; a BOM is dropped."""
    try:
        # surrogateescape: a strict decoder fails on a whole buffer and cannot name the line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, start=1):
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
    """The whole file as one JSON value."""
    try:
        return parse_json("".join(read_lines(path)))
    except LorgnetteError as error:
        if error.where is not None:
            raise
        advice = " (one object per line? then name the file .jsonl)" if "Extra data" in error.message else ""
        raise LorgnetteError(error.message, where=str(path), hint=f"correct the file there{advice}") from error


def parse_json(text: str) -> Any:
    """One JSON value. The error has the line and column; the caller adds the file's name."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"broken JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise LorgnetteError(message, hint="correct it there") from error
    except RecursionError as error:
        raise LorgnetteError("broken JSON: nested too deeply", hint="flatten it") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise LorgnetteError(f"broken JSON: {error}", hint="shorten the number") from error


def describe_type(value: object) -> str:
    """The type of a JSON value in words, for error messages."""
    names: dict[type, str] = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
    names |= {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
