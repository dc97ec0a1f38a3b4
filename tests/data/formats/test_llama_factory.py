import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data import read
from lorgnette.data.checks import data_report
from lorgnette.data.formats import llama_factory
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
MLLM = {
    "messages": [{"role": "user", "content": "<image>who?"}, {"role": "assistant", "content": "they"}],
    "images": ["pictures/a.jpg"],
}


@pytest.fixture
def described(picture: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write dataset_info.json and the entries' files; a picture lies in pictures/a.jpg."""
    picture("pictures/a.jpg")

    def make(info: dict[str, Any], **files: Any) -> Path:
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        return tmp_path / "dataset_info.json"

    return make


def turns(row: object) -> list[tuple[str, str]]:
    assert isinstance(row, Example), row
    return [(turn.role, turn.text) for turn in row.turns]


def test_sharegpt_with_its_columns_and_tags(described: Callable[..., Path], tmp_path: Path) -> None:
    entry = {
        "file_name": "mllm.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": OPENAI_TAGS,
    }
    path = described({"mllm": entry, "web": {"hf_hub_url": "x/y"}}, mllm=[MLLM])
    rows = list(read(path, name="mllm"))
    assert turns(rows[0]) == [("user", "who?"), ("assistant", "they")]
    assert isinstance(rows[0], Example)
    assert (rows[0].source, rows[0].row) == (tmp_path / "mllm.json", 1)
    assert data_report(rows).usable == 1
    assert turns(next(read(tmp_path / "mllm.json"))) == turns(rows[0])


def test_sharegpt_by_default(described: Callable[..., Path]) -> None:
    record = {
        "conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "<|vision_start|>"}],
        "pics": ["pictures/a.jpg"],
        "sys": "s",
        "tools": "undeclared, as LLaMA-Factory leaves it aside",
    }
    entry = {"file_name": "g.json", "formatting": "sharegpt", "columns": {"images": "pics", "system": "sys"}}
    [row] = read(described({"g": entry}, g=[record]))
    assert turns(row) == [("system", "s"), ("user", "q"), ("assistant", "<|vision_start|>")]


def test_alpaca_under_other_names(described: Callable[..., Path]) -> None:
    entry = {
        "file_name": "a.json",
        "columns": {"prompt": "ask", "query": "more", "response": "say", "history": "before", "images": "images"},
    }
    record = {"ask": "<image>q", "more": "m", "say": "a", "before": [["x", "y"]], "images": ["pictures/a.jpg"]}
    plain = {"instruction": "q", "output": "a", "history": [["not", "declared"]]}
    path = described({"a": entry, "b": {"file_name": "b.json"}}, a=[record], b=[plain])
    [row] = read(path, name="a")
    assert turns(row) == [("user", "x"), ("assistant", "y"), ("user", "q\nm"), ("assistant", "a")]
    [row] = read(path, name="b")
    assert turns(row) == [("user", "q"), ("assistant", "a")]


def test_so_many_samples_as_the_entry_says(described: Callable[..., Path]) -> None:
    path = described(
        {"a": {"file_name": "a.json", "num_samples": 3}},
        a=[{"instruction": str(i), "output": "a"} for i in range(50)],
    )
    drawn = [turns(row)[0][1] for row in read(path, seed=1)]
    assert len(drawn) == 3
    assert drawn == [turns(row)[0][1] for row in read(path, seed=1)]
    assert drawn != [turns(row)[0][1] for row in read(path, seed=2)]


@pytest.mark.parametrize(
    ("info", "name", "what", "remedy"),
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
    ],
)
def test_entries_that_cannot_be_read(
    described: Callable[..., Path], info: dict[str, Any], name: str | None, what: str, remedy: str
) -> None:
    path = described(info, a=[])
    with pytest.raises(LorgnetteError) as caught:
        list(read(path, name=name))
    assert what in caught.value.message
    assert remedy in (caught.value.hint or "")
    assert "dataset_info.json" in (caught.value.where or "")


@pytest.mark.parametrize(
    ("columns", "record", "what"),
    [
        ({"messages": "messages"}, MLLM, "1 × <image> in the user's text, but 0"),
        ({"messages": "messages", "videos": "films"}, MLLM | {"films": ["a.mp4"]}, "'videos'; only pictures"),
        ({"messages": "messages", "tools": "t"}, MLLM | {"t": "[…]"}, "'tools'"),
        ({"messages": "said"}, MLLM, "said is null"),
        ({"messages": "m"}, {"m": [{"role": "observation", "content": "x"}]}, "message 1 is from 'observation'"),
        ({"messages": "m"}, {"m": [{"role": "user"}]}, "message 1's content is null"),
    ],
)
def test_records_that_cannot_be_used(
    described: Callable[..., Path], columns: dict[str, str], record: dict[str, Any], what: str
) -> None:
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": columns, "tags": OPENAI_TAGS}
    [row] = read(described({"a": entry}, a=[record]))
    assert isinstance(row, Problem)
    assert what in row.message


def test_is_info() -> None:
    assert llama_factory.is_dataset_info({"a": {"file_name": "a.json"}})
    for value in ({}, {"a": {"file": "a.json"}}, {"a": {"file_name": "a.json"}, "b": 3}):
        assert not llama_factory.is_dataset_info(value)
    assert llama_factory.is_dataset_info(llama_factory.build_dataset_info([Path("/x/a.json"), Path("/x/b.json")]))


def test_a_name_is_asked_for(described: Callable[..., Path]) -> None:
    with pytest.raises(UsageError):
        list(read(described({"a": {"file_name": "a.json"}, "b": {"file_name": "a.json"}}, a=[])))
