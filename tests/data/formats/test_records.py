from pathlib import Path

import pytest

from lorgnette.data.formats.columns import Column
from lorgnette.data.formats.records import RecordReader, read_record
from lorgnette.data.row_location import ColumnChoice, ReadOptions, RowCounter
from lorgnette.errors import LorgnetteError

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_a_record_is_recognized_by_its_key() -> None:
    location = RowCounter(Path("/d/a.json"), ReadOptions()).next()
    [conversation] = read_record({"messages": MESSAGES}, location)
    [caption] = read_record({"image_path": "a.jpg", "caption": "b"}, location)
    assert (conversation.reference, caption.reference) == ("a", "b")
    with pytest.raises(LorgnetteError, match=r"which column holds the images; the columns are text \(text\)"):
        read_record({"text": "b"}, location)
    with pytest.raises(LorgnetteError, match="the row has both 'messages' and 'query'"):
        read_record({"messages": MESSAGES, "query": "q"}, location)


def test_a_conversation_comes_before_columns_unless_these_are_requested() -> None:
    location = RowCounter(Path("/d/a.json"), ReadOptions()).next()
    record = {"image": "a.jpg", "title": "b", "query": "c", "response": 3}
    read = RecordReader(ReadOptions(), "a.json")
    [conversation] = read({"messages": MESSAGES}, location)
    [caption] = read({"image": "a.jpg", "title": "b"}, location)
    assert (conversation.reference, caption.reference) == ("a", "b")
    with pytest.raises(LorgnetteError, match="the answer is a number"):
        read(record, location)
    [requested] = RecordReader(ReadOptions(columns=ColumnChoice(caption="title")), "a.json")(record, location)
    assert requested.reference == "b"


def test_only_needed_columns_are_read() -> None:
    columns = [Column("image", "image"), Column("caption", "text"), Column("mask", "bytes"), Column("id", "other")]
    options = ReadOptions(columns=ColumnChoice("image", "caption"))
    assert RecordReader(options, "x", columns).names == ["image", "caption", "id"]
    assert RecordReader(ReadOptions(), "x", [*columns, Column("messages", "other")]).names is None
