from pathlib import Path

import pytest

from lorgnette.data.formats.columns import Column, ColumnPair, ColumnReader, choose_columns, read_captions
from lorgnette.data.row_location import ColumnChoice, ReadOptions, RowCounter
from lorgnette.errors import LorgnetteError


def make_columns(**kinds: str) -> list[Column]:
    return [Column(name, kind) for name, kind in kinds.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "image", "caption"),
    [
        ({"image": "image", "caption": "text"}, "image", "caption"),
        ({"id": "text", "image": "image", "question": "text", "answer": "texts"}, "image", "answer"),
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
        (["a ", "", " b"], None, ["a", "b"]),
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


def test_fixed_names_keep_their_captions_as_written() -> None:
    counter = RowCounter(Path("/d/a.csv"), ReadOptions())
    [example] = ColumnReader(ColumnChoice(), "x").read_record(
        {"file_name": "a.jpg", "text": " a && b\n"}, counter.next()
    )
    assert example.reference == " a && b\n"
