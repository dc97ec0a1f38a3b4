"""Files that may come from anybody: what is too large, too deep or ambiguous is refused in one line."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorgnette.errors import LorgnetteError
from lorgnette.io import parse
from lorgnette.io.parse import (
    BrokenRow,
    find_weights_fault,
    parse_config,
    parse_json,
    parse_rows,
    read_config,
    read_front_matter,
    read_small_file,
    read_tensor_entries,
    read_yaml,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
DEEP = ("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[" * 100_000, '[{"a":' * 50_000)


@given(VALUES)
def test_plain_json_is_read_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_rows(text) == parse_config(text.encode()) == value


@pytest.mark.parametrize("text", DEEP)
@pytest.mark.parametrize("read", [parse_json, parse_rows, parse_config])
def test_deep_json_is_refused(read: Any, text: str) -> None:
    with pytest.raises(LorgnetteError, match="nested too deeply"):
        read(text)


def test_the_limit_of_depth_is_exact() -> None:
    assert parse_json("[" * parse.MAX_DEPTH + "]" * parse.MAX_DEPTH)
    with pytest.raises(LorgnetteError, match="nested too deeply"):
        parse_json("[" * (parse.MAX_DEPTH + 1) + "]" * (parse.MAX_DEPTH + 1))
    assert parse_json("[" + "[]," * 1000 + "[]]")  # many lists, not deep


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
@pytest.mark.parametrize("read", [parse_json, parse_config])
def test_a_repeated_key_is_refused_by_name(read: Any, text: str) -> None:
    with pytest.raises(LorgnetteError, match="the key 'a' is there twice"):
        read(text)


def test_a_row_with_a_repeated_key_is_broken_alone() -> None:
    text = '[{"a": 1}, {"a": {"b": [{"c": 1, "c": 2}]}}, {"a": 2, "a": 3}]'
    assert parse_rows(text) == [
        {"a": 1},
        BrokenRow("the key 'c' is there twice"),
        BrokenRow("the key 'a' is there twice"),
    ]
    text = '{"images": [{"id": 1}], "annotations": [{"id": 1, "id": 2}]}'
    assert parse_rows(text) == {"images": [{"id": 1}], "annotations": [BrokenRow("the key 'id' is there twice")]}


@pytest.mark.parametrize("text", ['{"images": [], "images": []}', '{"a": {"b": 1, "b": 2}, "c": [{"d": 1, "d": 1}]}'])
def test_a_repeated_key_outside_of_rows_refuses_the_file(text: str) -> None:
    with pytest.raises(LorgnetteError, match="is there twice"):
        parse_rows(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"r": NaN}', "r is NaN, not a finite number"),
        ('{"x": {"alpha": -Infinity}}', "alpha is -Infinity"),
        ('{"mean": [0.5, [1, Infinity]]}', "mean is Infinity"),
        ('{"eps": 1e999}', "eps is 1e999"),
        ('{"size": ' + "9" * 400 + "}", "size is 9999"),
        ("[NaN]", "NaN is not a finite number"),
    ],
)
def test_an_odd_number_in_a_config_is_named(text: str, message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        parse_config(text)
    assert message in caught.value.message
    assert len(caught.value.message) < 150
    parse_json(text)  # data: the reader of a number says it


def test_the_error_of_a_config_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, reason in (
        (b"{", "broken JSON: "), (b"[]", "it holds a list, not an object"), (b"\xff", "it is not UTF-8: byte 1"),
        (b"", "line 1"), (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(LorgnetteError, match=r"^config\.json cannot be read: ") as caught:
            read_config(path, "get it again")
        assert reason in caught.value.message
        assert (caught.value.where, caught.value.hint) == (str(path), "get it again")
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_config(path, "") == {"a": 1}


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero"), tmp_path):
        with pytest.raises(LorgnetteError, match="not a file"):
            read_config(path, "")
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "none.json", "")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_small_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(LorgnetteError, match="it has 5 bytes, more than 4"):
        read_small_file(tmp_path / "a", 4)
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(parse.MAX_CONFIG_BYTES + 1)
    with pytest.raises(LorgnetteError, match="more than"):
        read_config(tmp_path / "huge.json", "")


BILLION_LAUGHS = "\n".join(f"k{i}: &k{i} [{f'*k{i - 1}, ' * 9 if i else 'x'}]" for i in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is there twice in the mapping at line 1"),
        ("data:\n  path: x\n  path: y", "the key 'path' is there twice in the mapping at line 2"),
        ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
        ("a: &x [*x]", "nested too deeply"),
        (
            "\n".join(f"k{i}: &k{i} [{f'*k{i - 1}, ' * 9 if i else 'x'}]" for i in range(12)),
            "holds more than 10,000 values",
        ),
        ("a: 0x" + "f" * 6000, "too many digits"),
        ("a: " + "9" * 6000, "integer string conversion"),
        ("a: 2001-99-99", "month must be in"),
        ("a: !!int x", "."),
        ("a: !!bool x", "."),
        ("a: !!timestamp x", "."),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("? [a, b]\n: c", "unhashable key"),
        ("a: b: c", "mapping values are not allowed here"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(LorgnetteError, match=message) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


def test_plain_yaml_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x {b: [1, 2.5]}\nc: *x\nd: {<<: *x, e: null}\n")
    assert read_yaml(tmp_path / "a.yaml") == {
        "a": {"b": [1, 2.5]},
        "c": {"b": [1, 2.5]},
        "d": {"b": [1, 2.5], "e": None},
    }


def test_front_matter_is_read_to_its_end(tmp_path: Path) -> None:
    for text, expected in (
        ("---\na: 1\nb: [x]\n---\n# Title\n---\nc: 2\n", {"a": 1, "b": ["x"]}),
        ("---\r\na: 1\r\n---\r\ntext", {"a": 1}),
        ("# Title\n---\na: 1\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("", {}),
    ):
        (tmp_path / "README.md").write_bytes(text.encode())
        assert read_front_matter(tmp_path / "README.md") == expected
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(LorgnetteError):
        read_front_matter(tmp_path / "README.md")


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_header(path: Path, header: Any, data: bytes = b"\0" * 16) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_the_entries_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    content, entries = (tmp_path / "a.safetensors").read_bytes(), read_tensor_entries(tmp_path / "a.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "a": ("F32", (2, 3)), "b": ("BF16", (4,)), "c": ("F32", (0,)),
    }  # fmt: skip
    for name, entry in entries.items():
        assert content[entry.start : entry.end] == tensors[name].view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": TENSOR | {"data_offsets": [0, float("inf")]}}, "data_offsets is Infinity"),
        ({"a": TENSOR | {"data_offsets": [-8, 0]}}, "a has the data_offsets [-8, 0]"),
        ({"a": TENSOR | {"data_offsets": [8, 0]}}, "a has -8 bytes"),
        ({"a": TENSOR | {"data_offsets": [0, 8, 9]}}, "a has the data_offsets"),
        ({"a": TENSOR | {"data_offsets": [True, 9]}}, "a has the data_offsets"),
        ({"a": TENSOR | {"shape": [2.0]}}, "a has the shape [2.0]"),
        ({"a": TENSOR | {"shape": [-1, -2]}}, "a has the shape [-1, -2]"),
        ({"a": TENSOR | {"shape": [2**62, 2**62]}}, "a has 8 bytes, its shape and dtype need"),
        ({"a": TENSOR | {"shape": [1] * 17}}, "a has the shape"),
        ({"a": TENSOR | {"dtype": "F1"}}, "a has the dtype 'F1'"),
        ({"a": TENSOR | {"dtype": ["F32"]}}, "a has the dtype"),
        ({"a": []}, "a has the dtype None"),
        ({"a": TENSOR, "b": TENSOR | {"data_offsets": [4, 12]}}, "a and b share bytes"),
        (b'{"a": {}, "a": {}}', "the key 'a' is there twice"),
        ([], "it is a list"),
        (b"{" * 5000, "broken header"),
        (b"[" * 200_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    fault = find_weights_fault(write_header(tmp_path / "a.safetensors", header))
    assert fault is not None
    assert fault.startswith("has a broken header: ")
    assert reason in fault
    assert len(fault) < 250


def test_a_header_beyond_the_file_or_the_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for content, fault in (
        (struct.pack("<Q", 2**63) + b"{}", "is not a safetensors file"),
        (struct.pack("<Q", 50) + b"{}", "is truncated: its header is longer than its 10 bytes"),
        (b"abc", "is truncated: its header is longer than its 3 bytes"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        assert find_weights_fault(path) == fault
    write_header(path, {"a": TENSOR | {"data_offsets": [16, 24]}})
    assert str(find_weights_fault(path)).startswith("is truncated: it has ")
