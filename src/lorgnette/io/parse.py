"""Reads JSON, YAML and safetensors headers, which may come from anybody, within limits of size, depth and meaning.

    parse_json, parse_rows     a value of a data file
    parse_config, read_config  a small file of settings, such as config.json: every number in it is finite
    read_yaml                  a recipe
    read_tensor_entries        the header of a safetensors file

A key that an object has twice is refused: parsers differ in which of the values they take. Every failure is a
LorgnetteError of one line. `tests/test_structure.py` holds that no other module parses JSON or YAML.
"""

import json
import math
import stat
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lorgnette.errors import LorgnetteError

MAX_DEPTH = 64
"""Levels of lists and objects: what reads the values later may recurse."""
MAX_CONFIG_BYTES = 64 * 2**20
"""The largest tokenizer.json of a Qwen model has 12 MB."""
MAX_LINES_BYTES = 2**31
"""A log, or a file of answers."""
MAX_YAML_BYTES = 2**18
"""PyYAML reads about 0.2 MB per second."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""
_MAX_YAML_VALUES = 10_000
_MAX_DIGITS = 20  # of 2**64
_MAX_DIMENSIONS = 16
_LFS_POINTER = b"version https://git-lfs"
_NUM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8), "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16), **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}  # fmt: skip
"""safetensors' dtypes with the bits of a value."""


class BrokenRow(NamedTuple):
    """Stands in a list of rows for one whose meaning is not clear; `message` says why."""

    message: str


class TensorEntry(NamedTuple):
    """A tensor of a safetensors file: its bytes are start..end of the file, row after row."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class _RepeatedKey(dict[str, Any]):
    """An object of a data file that has the key `key` twice."""

    key: str


class _OddNumber(str):
    """A number of a config file that is not finite, or too long."""


def parse_json(text: str | bytes) -> Any:
    """One JSON value. The error has the line and column; the caller adds the file's name."""
    return _parse(text, object_pairs_hook=_build_object)


def parse_rows(text: str | bytes) -> Any:
    """A data file's JSON value. A row (an item of its list, or of a list in its object) with a repeated key is a
    BrokenRow there."""
    repeated: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        marked = _RepeatedKey(value)
        marked.key = _find_repeated_key([key for key, _ in pairs])
        repeated.append(marked.key)
        return marked

    value = _parse(text, object_pairs_hook=build)
    if not repeated:
        return value
    lists = [value] if isinstance(value, list) else list(value.values()) if type(value) is dict else []
    num_rows = 0
    for rows in lists:
        for number, row in enumerate(rows if isinstance(rows, list) else ()):
            if keys := _list_repeated_keys(row):
                rows[number] = BrokenRow(_explain_repeated_key(keys[0]))
                num_rows += len(keys)
    if num_rows < len(repeated):
        raise LorgnetteError(f"broken JSON: {_explain_repeated_key(repeated[-1])}", hint="remove one of the two")
    return value


def parse_config(text: str | bytes) -> Any:
    """One JSON value in which every number is finite and has at most 20 digits."""
    odd: list[_OddNumber] = []

    def refuse(digits: str) -> _OddNumber:
        odd.append(_OddNumber(digits))
        return odd[-1]

    def parse_float(digits: str) -> Any:
        return value if math.isfinite(value := float(digits)) else refuse(digits)

    def parse_int(digits: str) -> Any:
        return int(digits) if len(digits) <= _MAX_DIGITS else refuse(digits)

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if odd:  # this object is the innermost one around it
            key = next((key for key, value in pairs if _holds_odd_number(value)), "a value")
            raise LorgnetteError(f"{key} is {shorten(odd[0])}, not a finite number")
        return _build_object(pairs)

    value = _parse(
        text, object_pairs_hook=build, parse_constant=refuse, parse_float=parse_float, parse_int=parse_int
    )  # fmt: skip
    if odd:
        raise LorgnetteError(f"{shorten(odd[0])} is not a finite number")
    return value


def read_config(path: Path, hint: str) -> dict[str, Any]:
    """The object in a small JSON file. Raises LorgnetteError with `hint` if the file is broken, OSError if it cannot be
    opened."""
    try:
        value = parse_config(read_small_file(path, MAX_CONFIG_BYTES))
        if not isinstance(value, dict):
            raise LorgnetteError(f"it holds {describe_type(value)}, not an object")
    except LorgnetteError as error:
        message = f"{path.name} cannot be read: {error.message}"
        raise LorgnetteError(message, where=str(path), hint=hint) from None
    return value


def read_yaml(path: Path) -> Any:
    """The values of a YAML file. Raises LorgnetteError if it is broken, OSError if it cannot be opened."""
    return _parse_yaml(decode_utf8(read_small_file(path, MAX_YAML_BYTES)))


def _parse_yaml(text: str) -> Any:
    try:
        value = yaml.load(text, _YamlLoader)  # noqa: S506 - a SafeLoader
    except LorgnetteError:
        raise
    except RecursionError:
        raise LorgnetteError("nested too deeply") from None
    except Exception as error:  # PyYAML raises nearly anything for a value that its tag does not fit
        raise LorgnetteError(" ".join(str(error).split()) or type(error).__name__) from None
    _check_yaml_values(value)
    return value


def read_front_matter(path: Path) -> dict[str, Any]:
    """The YAML between two lines `---` at the start of a text, as in cards on a hub; {} without one.

    Raises LorgnetteError if it is broken, OSError if the file cannot be opened.
    """
    text = decode_utf8(read_small_file(path, MAX_YAML_BYTES)).replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    value = _parse_yaml(text.partition("\n")[2].partition("\n---")[0])
    return value if isinstance(value, dict) else {}


def read_tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file by name, in the order of its header, and inside the file.

    Raises LorgnetteError ("is truncated: …") for a broken file, OSError if it cannot be opened.
    """
    size = check_is_file(path)
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if not size:
            raise LorgnetteError("is empty")
        if start == _LFS_POINTER:
            raise LorgnetteError("is a Git LFS pointer, not the file itself: run `git lfs pull`")
        length = int.from_bytes(start[:8], "little")
        if size >= 8 and length > MAX_HEADER_BYTES:
            raise LorgnetteError("is not a safetensors file")
        if size < 8 + length:
            raise LorgnetteError(f"is truncated: its header is longer than its {size} bytes")
        file.seek(8)
        header = file.read(length)
    try:
        entries = parse_config(header)
        if not isinstance(entries, dict):
            raise LorgnetteError(f"it is {describe_type(entries)}")
        entries.pop("__metadata__", None)
        tensors = {name: _parse_entry(name, entry, 8 + length) for name, entry in entries.items()}
    except LorgnetteError as error:
        raise LorgnetteError(f"has a broken header: {error.message}") from None
    full_size = max((entry.end for entry in tensors.values()), default=0)
    if size < full_size:
        raise LorgnetteError(f"is truncated: it has {size} of {full_size} bytes")
    spans = sorted((entry.start, entry.end, name) for name, entry in tensors.items() if entry.start < entry.end)
    for (_, end, name), (next_start, _, next_name) in pairwise(spans):
        if next_start < end:
            raise LorgnetteError(f"has a broken header: {shorten(name)} and {shorten(next_name)} share bytes")
    return tensors


def find_weights_fault(path: Path) -> str | None:
    """Why a safetensors file cannot be read, judged by its header and size alone; None if they show nothing wrong."""
    try:
        read_tensor_entries(path)
    except LorgnetteError as error:
        return error.message
    return None


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """A small file as a whole. Raises LorgnetteError if it is larger, OSError if it cannot be opened."""
    size = check_is_file(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise LorgnetteError(f"it has {max(size, len(content)):,} bytes, more than {max_bytes:,}")
    return content


def decode_utf8(content: bytes) -> str:
    """The text of a small file; a BOM is dropped."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LorgnetteError(f"it is not UTF-8: byte {error.start + 1}") from None


def describe_type(value: object) -> str:
    """The type of a JSON value in words, for error messages."""
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    names: dict[type, str] = {type(None): "null", bool: "true or false", int: "a number", float: "a number"}
    names |= {str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates: halves of a character in JSON, or bytes of the command line that are not
    UTF-8."""
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_is_file(path: Path) -> int:
    """The size of a file. Raises LorgnetteError for a folder, and for a pipe or a device, which may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise LorgnetteError("it is not a file")
    return status.st_size


def _parse(text: str | bytes, **hooks: Any) -> Any:
    text = text if isinstance(text, str) else decode_utf8(text)
    try:
        value = json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        message = f"broken JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        raise LorgnetteError(message, hint="correct it there") from None
    except RecursionError:
        raise LorgnetteError("broken JSON: nested too deeply", hint="flatten it") from None
    except ValueError as error:  # an integer of more than 4300 digits
        raise LorgnetteError(f"broken JSON: {error}", hint="shorten the number") from None
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        parents = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for children in parents for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise LorgnetteError("broken JSON: nested too deeply", hint="flatten it")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = _find_repeated_key([key for key, _ in pairs])
        raise LorgnetteError(f"broken JSON: {_explain_repeated_key(key)}", hint="remove one of the two")
    return value


def _find_repeated_key(keys: Sequence[str]) -> str:
    found: set[str] = set()
    return next(key for key in keys if key in found or found.add(key))  # type: ignore[func-returns-value]


def _explain_repeated_key(key: str) -> str:
    return f"the key {shorten(key)!r} is there twice"


def _list_repeated_keys(row: Any) -> list[str]:
    """The repeated keys of all objects in a row, the first one first."""
    keys: list[str] = []
    stack = [row]
    while stack:
        value = stack.pop()
        if isinstance(value, _RepeatedKey):
            keys.append(value.key)
        if isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value
    return keys


def _holds_odd_number(value: Any) -> bool:
    return isinstance(value, _OddNumber) or (isinstance(value, list) and any(map(_holds_odd_number, value)))


def shorten(text: str, length: int = 80) -> str:
    """The first `length` characters of a text, for an error message."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _parse_entry(name: str, entry: Any, data_start: int) -> TensorEntry:
    """One entry of a safetensors header: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _NUM_BITS:
        raise LorgnetteError(f"{shorten(name)} has the dtype {shorten(repr(dtype))}")
    is_shape = _is_list_of_sizes(shape) and len(shape) <= _MAX_DIMENSIONS
    if not is_shape or not _is_list_of_sizes(offsets) or len(offsets) != 2:
        what = "data_offsets" if is_shape else "shape"
        raise LorgnetteError(f"{shorten(name)} has the {what} {shorten(repr(offsets if is_shape else shape))}")
    num_bytes, num_bits = offsets[1] - offsets[0], math.prod(shape) * _NUM_BITS[dtype]
    if num_bytes * 8 != num_bits:
        raise LorgnetteError(f"{shorten(name)} has {num_bytes} bytes, its shape and dtype need {num_bits // 8}")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


class _YamlLoader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, which PyYAML takes silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                where = f"line {node.start_mark.line + 1}"
                raise LorgnetteError(f"{_explain_repeated_key(_find_repeated_key(keys))} in the mapping at {where}")
        return super().construct_mapping(node, deep)


def _check_yaml_values(value: Any) -> None:
    """Count the values as they print: aliases (`*name`) let a short file stand for a number of values without end."""
    num_values, level = 0, [value]
    for _ in range(MAX_DEPTH):
        num_values += len(level)
        if any(isinstance(item, int) and item.bit_length() > 64 for item in level):
            raise LorgnetteError("a number has too many digits")
        if num_values > _MAX_YAML_VALUES:
            raise LorgnetteError(f"it holds more than {_MAX_YAML_VALUES:,} values")
        level = [child for item in level for child in _list_children(item)]
        if not level:
            return
    raise LorgnetteError("nested too deeply")


def _list_children(item: Any) -> list[Any]:
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return list(item) if isinstance(item, list | tuple | set) else []
