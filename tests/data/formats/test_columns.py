from pathlib import Path

import pytest

from lorgnette.data.formats.columns import Column, ColumnPair, ColumnReader, choose_columns, read_captions
from lorgnette.data.row_location import ColumnChoice, ReadOptions, RowCounter, UnclearColumnsError
from lorgnette.errors import LorgnetteError


def make_columns(**kinds: str) -> list[Column]:
    return [Column(name, kind) for name, kind in kinds.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "image", "caption"),
    [
        ({"image": "image", "caption": "text"}, "image", "caption"),
        ({"id": "text", "image": "image", "question": "text", "answer": "texts"}, "image", "answer"),
        ({"image": "image", "question": "text", "caption": "text", "answer": "text"}, "image", "answer"),
        ({"image": "image", "prompt": "text"}, "image", "prompt"),
        ({"image": "image", "prompt": "text", "title": "text"}, "image", "title"),
        ({"thing": "bytes", "words": "text"}, "thing", "words"),
        ({"image": "image", "mask": "image", "text": "text"}, "image", "text"),
        ({"uniq_id": "text", "image_id": "text", "caption": "text", "image": "text"}, "image", "caption"),
        ({"coco_url": "text", "file_name": "text", "captions": "texts", "height": "other"}, "coco_url", "captions"),
        ({"file_name": "text", "text": "text"}, "file_name", "text"),
        ({"Image": "image", "Caption": "text", "text": "text"}, "Image", "Caption"),
        ({"image": "image", "filename": "text", "sentences_raw": "texts", "clip": "text"}, "image", "sentences_raw"),
    ],
)
def test_columns_are_found(kinds: dict[str, str], image: str, caption: str) -> None:
    assert choose_columns(make_columns(**kinds), ColumnChoice(), where="x") == ColumnPair(image, caption)


@pytest.mark.parametrize(
    ("kinds", "option"),
    [
        ({"left": "image", "right": "image", "caption": "text"}, "image"),
        ({"image": "image", "en": "text", "zh": "text"}, "caption"),
        ({"image": "image", "n": "other"}, "caption"),
        ({"caption": "text"}, "image"),
        ({"image": "image", "caption": "text", "captions": "texts"}, "caption"),
        ({"image": "image", "question": "text"}, "caption"),
    ],
)
def test_in_doubt_all_columns_are_listed(kinds: dict[str, str], option: str) -> None:
    with pytest.raises(LorgnetteError, match=f"--{option}-column") as raised:
        choose_columns(make_columns(**kinds), ColumnChoice(), where="x")
    assert all(f"{name} ({kind})" in str(raised.value) for name, kind in kinds.items())


def test_a_requested_column_wins() -> None:
    columns = make_columns(left="image", right="image", en="text", zh="text")
    assert choose_columns(columns, ColumnChoice("right", "zh"), where="x") == ColumnPair("right", "zh")
    with pytest.raises(LorgnetteError, match="there is no column 'center'; the columns are left"):
        choose_columns(columns, ColumnChoice("center", "zh"), where="x")


@pytest.mark.parametrize(
    ("value", "separator", "captions"),
    [
        ("a cat", None, ["a cat"]),
        (" a && b&&  && c ", "&&", ["a", "b", "c"]),
        (r"x && y", None, ["x && y"]),
        (["a ", "", " b"], None, ["a ", " b"]),
        (" a\r\n", "&&", [" a\r\n"]),
        ([{"raw": "a", "tokens": ["a"]}, {"raw": "b"}], None, ["a", "b"]),
        ({"caption": ["a", "b"], "text": "c"}, None, ["a", "b"]),
        (None, None, []),
        ("  ", None, []),
        (3, None, []),
        (b"bytes", None, []),
        ([[["deep"]]], None, ["deep"]),
    ],
)
def test_captions_are_read_from_a_cell(value: object, separator: str | None, captions: list[str]) -> None:
    assert read_captions(value, separator=separator) == captions


def test_the_columns_are_chosen_from_the_first_record() -> None:
    counter = RowCounter(Path("/d/a.jsonl"), ReadOptions(prompt="q"))
    reader = ColumnReader(ColumnChoice(), "a.jsonl")
    [example] = reader.read_record({"img": "a.jpg", "title": " one "}, counter.next())
    assert (example.id, example.reference, example.images[0].path) == ("identity_1", "one", Path("/d/a.jpg"))
    with pytest.raises(LorgnetteError, match="the caption is empty"):
        reader.read_record({"img": "a.jpg", "title": None}, counter.next())
    with pytest.raises(LorgnetteError, match="'img' is empty"):
        reader.read_record({"img": "", "title": "x"}, counter.next())


def test_a_question_is_asked_and_other_columns_are_named() -> None:
    counter = RowCounter(Path("/d/a.jsonl"), ReadOptions(prompt="q"))
    record = {"image": "a.jpg", "question": "what?", "caption": "a photo", "answer": "a cat", "license": "CC0", "x": ""}
    [example] = ColumnReader(ColumnChoice(), "a.jsonl").read_record(record, counter.next())
    assert [turn.text for turn in example.turns] == ["what?", "a cat"]
    assert example.unread_keys == ("caption", "license")


def test_columns_that_training_would_miss_are_refused_unless_others_are_requested() -> None:
    counter = RowCounter(Path("/d/a.jsonl"), ReadOptions(prompt="q"))
    record = {"image": "a.jpg", "title": "a cat", "bbox": [1, 2, 3, 4]}
    with pytest.raises(LorgnetteError, match=r"'bbox', which this format does not read.*--caption-column"):
        ColumnReader(ColumnChoice(), "x").read_record(record, counter.next())
    [example] = ColumnReader(ColumnChoice(caption="title"), "x").read_record(record, counter.next())
    assert example.unread_keys == ("bbox",)
    columns = make_columns(image="image", caption="text", bbox="other")
    with pytest.raises(UnclearColumnsError, match="'bbox'"):
        ColumnReader(ColumnChoice(), "x", columns)
    assert ColumnReader(ColumnChoice(caption="caption"), "x", columns).names == ["image", "caption"]


def test_a_separator_stands_only_beside_an_image_id() -> None:
    counter = RowCounter(Path("/d/a.csv"), ReadOptions())
    [example] = ColumnReader(ColumnChoice(), "x").read_record(
        {"file_name": "a.jpg", "text": " a && b\n"}, counter.next()
    )
    assert example.reference == "a && b"
