import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data import check_rows, read
from lorgnette.data.formats import llama_factory
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
COLUMNS = {"messages": "messages", "images": "images"}
MLLM = {
    "messages": [{"role": "user", "content": "<image>who?"}, {"role": "assistant", "content": "they"}],
    "images": ["images/a.jpg"],
}


@pytest.fixture
def write_info(make_image: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write dataset_info.json and the entries' files; there is an image at images/a.jpg."""
    make_image("images/a.jpg")

    def make(info: dict[str, Any], **files: Any) -> Path:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        return tmp_path / "dataset_info.json"

    return make


def read_turns(row: object) -> list[tuple[str, str]]:
    assert isinstance(row, Example), row
    return [(turn.role, turn.text) for turn in row.turns]


def test_sharegpt_is_read_with_its_columns_and_tags(write_info: Callable[..., Path], tmp_path: Path) -> None:
    entry = {
        "file_name": "mllm.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": OPENAI_TAGS,
    }
    path = write_info({"mllm": entry, "web": {"hf_hub_url": "x/y"}}, mllm=[MLLM])
    rows = list(read(path, name="mllm"))
    assert read_turns(rows[0]) == [("user", "who?"), ("assistant", "they")]
    assert isinstance(rows[0], Example)
    assert (rows[0].source, rows[0].row) == (tmp_path / "mllm.json", 1)
    assert check_rows(rows).num_usable == 1
    assert read_turns(next(read(tmp_path / "mllm.json"))) == read_turns(rows[0])


def test_sharegpt_has_default_columns_and_tags(write_info: Callable[..., Path]) -> None:
    record = {
        "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "<|vision_start|>"}],
        "pics": ["images/a.jpg"],
        "sys": "s",
        "tools": "undeclared, so LLaMA-Factory ignores it",
    }
    entry = {"file_name": "g.json", "formatting": "sharegpt", "columns": {"images": "pics", "system": "sys"}}
    [row] = read(write_info({"g": entry}, g=[record]))
    assert read_turns(row) == [("system", "s"), ("user", "q"), ("assistant", "<|vision_start|>")]
    assert isinstance(row, Example)
    assert row.unread_keys == ("tools",)


def test_alpaca_is_read_under_other_names(write_info: Callable[..., Path]) -> None:
    entry = {
        "file_name": "a.json",
        "columns": {"prompt": "ask", "query": "more", "response": "say", "history": "before", "images": "images"},
    }
    record = {"ask": "<image>q", "more": "m", "say": "a", "before": [["x", "y"]], "images": ["images/a.jpg"]}
    plain = {"instruction": "q", "output": "a", "history": [["not", "declared"]]}
    path = write_info({"a": entry, "b": {"file_name": "b.json"}}, a=[record], b=[plain])
    [row] = read(path, name="a")
    assert read_turns(row) == [("user", "x"), ("assistant", "y"), ("user", "q\nm"), ("assistant", "a")]
    [row] = read(path, name="b")
    assert read_turns(row) == [("user", "q"), ("assistant", "a")]


def test_num_samples_rows_are_sampled(write_info: Callable[..., Path]) -> None:
    path = write_info(
        {"a": {"file_name": "a.json", "num_samples": 3}},
        a=[{"instruction": str(i), "output": "a"} for i in range(50)],
    )
    sample = [read_turns(row)[0][1] for row in read(path, seed=1)]
    assert len(sample) == 3
    assert sample == [read_turns(row)[0][1] for row in read(path, seed=1)]
    assert sample != [read_turns(row)[0][1] for row in read(path, seed=2)]


@pytest.mark.parametrize(
    ("info", "name", "message", "hint"),
    [
        ({"a": {"file_name": "a.json"}, "b": {"file_name": "b.json"}}, None, "several data sets", "name one: a, b"),
        ({"a": {"file_name": "a.json"}}, "c", "no data set 'c'", "name one of a"),
        ({"a": {"hf_hub_url": "x/y"}}, None, "not a local file (hf_hub_url: x/y)", "hf:x/y"),
        ({"a": {"ms_hub_url": "x/y"}}, "a", "not a local file (ms_hub_url: x/y)", "modelscope:x/y"),
        ({"a": {"script_url": "x"}}, None, "not a local file (script_url: x)", "download"),
        ({"a": {"file_name": "gone.json"}}, None, "'gone.json' does not exist", "correct"),
        ({"a": {"file_name": "dataset_info.csv"}}, None, "does not exist", "correct"),
        ({"a": {"file_name": "a.json", "ranking": True}}, None, "ranks answers", "single answer"),
        ({"a": {"file_name": "a.json", "formatting": "x"}}, None, "formatting is 'x'", "alpaca or sharegpt"),
        ({"a": {"file_name": "a.json", "columns": ["x"]}}, None, "columns ['x']", "objects"),
        ({"a": {"file_name": "a.json", "columns": {"image": "x"}}}, None, "'image', which is not read", "images"),
    ],
)
def test_entries_that_cannot_be_read_are_refused(
    write_info: Callable[..., Path], info: dict[str, Any], name: str | None, message: str, hint: str
) -> None:
    path = write_info(info, a=[])
    with pytest.raises(LorgnetteError) as caught:
        list(read(path, name=name))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "dataset_info.json" in (caught.value.where or "")


@pytest.mark.parametrize(
    ("columns", "record", "message"),
    [
        ({"messages": "messages"}, MLLM, "'images', which the entry's columns do not declare"),
        ({"messages": "messages"}, {"messages": MLLM["messages"]}, "1 × <image> in the user's text, but 0"),
        (COLUMNS | {"videos": "films"}, MLLM | {"films": ["a.mp4"]}, "'videos'; only images"),
        (COLUMNS | {"tools": "t"}, MLLM | {"t": "[…]"}, "'tools'"),
        (COLUMNS | {"kto_tag": "good"}, MLLM | {"good": False}, "marked as not to be learned (kto_tag)"),
        (COLUMNS, MLLM | {"label": False}, "marked as not to be learned (label)"),
        (COLUMNS | {"messages": "said"}, MLLM, "said is null"),
        ({"messages": "m"}, {"m": [{"role": "observation", "content": "x"}]}, "message 1 is from 'observation'"),
        ({"messages": "m"}, {"m": [{"role": "user"}]}, "message 1's content is null"),
    ],
)
def test_records_that_cannot_be_used_are_problems(
    write_info: Callable[..., Path], columns: dict[str, str], record: dict[str, Any], message: str
) -> None:
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": columns, "tags": OPENAI_TAGS}
    [row] = read(write_info({"a": entry}, a=[record]))
    assert isinstance(row, Problem)
    assert message in row.message


def test_a_dataset_info_is_recognized() -> None:
    assert llama_factory.is_dataset_info({"a": {"file_name": "a.json"}})
    for value in ({}, {"a": {"file": "a.json"}}, {"a": {"file_name": "a.json"}, "b": 3}):
        assert not llama_factory.is_dataset_info(value)
    assert llama_factory.is_dataset_info(llama_factory.build_dataset_info([Path("/x/a.json"), Path("/x/b.json")]))


def test_several_entries_need_a_name(write_info: Callable[..., Path]) -> None:
    with pytest.raises(UsageError):
        list(read(write_info({"a": {"file_name": "a.json"}, "b": {"file_name": "a.json"}}, a=[])))
