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
    with pytest.raises(LorgnetteError, match="the row has 'image', 'caption'"):
        read_record({"image": "a.jpg", "caption": "b"}, location)


def test_columns_are_recognized_only_if_the_options_say_so() -> None:
    location = RowCounter(Path("/d/a.json"), ReadOptions()).next()
    record = {"image": "a.jpg", "title": "b", "query": "c", "response": 3}
    read = RecordReader(ReadOptions(columns=ColumnChoice()), "a.json")
    [conversation] = read({"messages": MESSAGES}, location)
    [caption] = read({"image": "a.jpg", "title": "b"}, location)
    assert (conversation.reference, caption.reference) == ("a", "b")
    with pytest.raises(LorgnetteError, match="the answer is a number"):
        read(record, location)
    [requested] = RecordReader(ReadOptions(columns=ColumnChoice(caption="title")), "a.json")(record, location)
    assert requested.reference == "b"
    with pytest.raises(LorgnetteError, match="the row has 'image'"):
        RecordReader(ReadOptions(), "a.json")({"image": "a.jpg", "title": "b"}, location)


def test_only_needed_columns_are_read() -> None:
    columns = [Column("image", "image"), Column("caption", "text"), Column("mask", "bytes"), Column("id", "other")]
    options = ReadOptions(columns=ColumnChoice("image", "caption"))
    assert RecordReader(options, "x", columns).names == ["image", "caption", "id"]
    assert RecordReader(ReadOptions(columns=ColumnChoice()), "x", [*columns, Column("messages", "other")]).names is None
