from pathlib import Path

import pytest

from lorgnette.data.formats.columns import Column, ColumnReader, Layout, choose_columns
from lorgnette.data.row_location import ColumnChoice, ReadOptions, RowCounter, RowLocation, UnclearColumnsError
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

CAT = Image(Path("/d/cat.jpg"))


def on_a_hub(written: str, coco_id: int | None) -> Path:
    return Path(written)


LOCAL, REMOTE = ReadOptions(prompt="q"), ReadOptions(prompt="q", locate_image=on_a_hub)


def make_columns(**kinds: str) -> list[Column]:
    return [Column(name, kind) for name, kind in kinds.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "image", "caption"),
    [
        ({"image": "image", "caption": "text"}, "image", "caption"),
        ({"id": "text", "image": "image", "question": "text", "answer": "texts"}, "image", "answer"),
        ({"image": "image", "question": "text", "caption": "text", "answer": "text"}, "image", "answer"),
        ({"image": "image", "prompt": "text", "title": "text"}, "image", "title"),
        ({"thing": "bytes", "words": "text"}, "thing", "words"),
        ({"image": "image", "mask": "image", "text": "text"}, "image", "text"),
        ({"uniq_id": "text", "image_id": "text", "caption": "text", "image": "text"}, "image", "caption"),
        ({"file_name": "text", "text": "text"}, "file_name", "text"),
        ({"Image": "image", "Caption": "text", "text": "text"}, "Image", "Caption"),
        ({"image": "image", "filename": "text", "sentences_raw": "texts", "clip": "text"}, "image", "sentences_raw"),
        ({"Image": "path", "Text": "text"}, "Image", "Text"),
        ({"File Name": "path", "alt-text": "text"}, "File Name", "alt-text"),
        ({"filename": "path", "description": "text"}, "filename", "description"),
        ({"photo": "path", "label": "text"}, "photo", "label"),
        ({"photo": "path", "breed": "text", "label": "text"}, "photo", "breed"),
        ({"image": "image", "label": "label"}, "image", "label"),
        ({"image": "image", "fine": "label"}, "image", "fine"),
        ({"Bild": "path", "Beschreibung": "text", "Nr": "number"}, "Bild", "Beschreibung"),
        ({"image": "text", "image_path": "path", "caption": "text"}, "image_path", "caption"),
        ({"image": "path", "caption": "empty", "note": "text"}, "image", "caption"),
        ({"image": "path", "title": "empty"}, "image", "title"),
        ({"image": "path", "question": "text", "answer": "number"}, "image", "answer"),
        ({"image": "path", "question": "text", "label": "text"}, "image", "label"),
    ],
)
def test_columns_are_found(kinds: dict[str, str], image: str, caption: str) -> None:
    assert choose_columns(make_columns(**kinds), LOCAL, where="x")[:2] == (image, caption)


def test_on_a_hub_a_url_is_the_image_and_a_prompt_alone_describes_it() -> None:
    urls = make_columns(coco_url="path", file_name="path", captions="texts", height="other")
    assert choose_columns(urls, REMOTE, where="x") == Layout("coco_url", "captions")
    assert choose_columns(urls, LOCAL, where="x") == Layout("file_name", "captions")
    prompts = make_columns(image="image", prompt="text")
    assert choose_columns(prompts, REMOTE, where="x") == Layout("image", "prompt")
    assert choose_columns(prompts, LOCAL, where="x") == Layout("image", None, ("prompt",))


@pytest.mark.parametrize(
    ("kinds", "option"),
    [
        ({"left": "image", "right": "image", "caption": "text"}, "image"),
        ({"image": "image", "en": "text", "zh": "text"}, "caption"),
        ({"image": "image", "n": "other"}, "caption"),
        ({"caption": "text"}, "image"),
        ({"image": "image", "caption": "text", "captions": "texts"}, "caption"),
        ({"image": "path", "width": "number"}, "caption"),
        ({"image": "image", "fine": "label", "coarse": "label"}, "caption"),
        ({"image_path": "path", "file_name": "path", "text": "text"}, "image"),
        ({"before": "path", "after": "path", "text": "text"}, "image"),
    ],
)
def test_in_doubt_all_columns_are_listed(kinds: dict[str, str], option: str) -> None:
    with pytest.raises(LorgnetteError, match=f"--{option}-column") as raised:
        choose_columns(make_columns(**kinds), LOCAL, where="x")
    assert all(f"{name} ({kind})" in str(raised.value) for name, kind in kinds.items())


def test_a_requested_column_wins() -> None:
    columns = make_columns(left="image", right="image", en="text", zh="text")
    options = ReadOptions(columns=ColumnChoice("right", "zh"))
    assert choose_columns(columns, options, where="x") == Layout("right", "zh")
    with pytest.raises(LorgnetteError, match="there is no column 'center'; the columns are left"):
        choose_columns(columns, ReadOptions(columns=ColumnChoice("center", "zh")), where="x")


def read(record: dict[str, object], options: ReadOptions = LOCAL) -> list[Example]:
    return ColumnReader(options, "a.jsonl").read_record(record, RowCounter(Path("/d/a.jsonl"), options).next())


def test_rows_with_other_keys_have_their_own_columns() -> None:
    counter, reader = RowCounter(Path("/d/a.jsonl"), LOCAL), ColumnReader(LOCAL, "a.jsonl")
    [example] = reader.read_record({"img": "a.jpg", "title": " one "}, counter.next())
    assert (example.id, example.reference, example.images[0].path) == ("identity_1", "one", Path("/d/a.jpg"))
    [example] = reader.read_record({"file_name": "b.jpg", "text": "two"}, counter.next())
    assert example.reference == "two"
    for record in ({"img": "a.jpg", "title": None}, {"img": "a.jpg", "size": 3}):
        with pytest.raises(LorgnetteError, match="the caption is empty"):
            reader.read_record(record, counter.next())
    with pytest.raises(LorgnetteError, match="'img' is empty"):
        reader.read_record({"img": "", "title": "x"}, counter.next())


def test_all_rows_of_a_table_have_the_columns_of_the_first() -> None:
    counter, reader = RowCounter(Path("/d/a.csv"), LOCAL), ColumnReader(LOCAL, "a.csv", is_table=True)
    reader.read_record({"Bild": "a.jpg", "Titel": "one", "Nr": "1"}, counter.next())
    [example] = reader.read_record({"Bild": "b.jpg", "Titel": "2", "Nr": "two.jpg"}, counter.next())
    assert (example.reference, example.unread_keys) == ("2", ("Nr",))
    with pytest.raises(UnclearColumnsError, match="which column holds the images; the columns are a"):
        ColumnReader(LOCAL, "a.csv", is_table=True).read_record({"a": "b", "c": "d"}, counter.next())


def test_a_question_is_asked_and_other_columns_are_named() -> None:
    record = {"image": "a.jpg", "question": "what?", "caption": "a photo", "answer": "a cat", "license": "CC0", "x": ""}
    [example] = read(record)
    assert [turn.text for turn in example.turns] == ["what?", "a cat"]
    assert example.unread_keys == ("caption", "license")


def test_columns_that_training_would_miss_are_refused_unless_others_are_requested() -> None:
    record = {"image": "a.jpg", "title": "a cat", "bbox": [1, 2, 3, 4]}
    with pytest.raises(LorgnetteError, match=r"'bbox', which this format does not read.*--caption-column"):
        read(record)
    requested = ReadOptions(columns=ColumnChoice(caption="title"))
    [example] = read(record, requested)
    assert example.unread_keys == ("bbox",)
    columns = make_columns(image="image", caption="text", bbox="other")
    with pytest.raises(UnclearColumnsError, match="'bbox'"):
        ColumnReader(LOCAL, "x", columns)
    requested = ReadOptions(columns=ColumnChoice(caption="caption"))
    assert ColumnReader(requested, "x", columns).names == ["image", "caption"]


def test_a_separator_stands_only_beside_an_image_id() -> None:
    [example] = read({"file_name": "a.jpg", "text": " a && b\n"})
    assert example.reference == "a && b"
    examples = read({"file_name": "a.jpg", "text": " a &&  && b", "image_id": 3})
    assert [example.reference for example in examples] == ["a", "b"]


def test_a_list_of_one_image_is_that_image() -> None:
    [example] = read({"images": ["a.jpg"], "text": "one"})
    assert example.images[0].path == Path("/d/a.jpg")
    with pytest.raises(LorgnetteError, match="'images' is a list"):
        read({"images": ["a.jpg", "b.jpg"], "text": "one"})


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"image_path": "a.jpg", "caption": "x"}, []),
        ({"image": "a.jpg", "text": "x"}, ["a.jsonl: image → image, text → caption"]),
        (
            {"image_path": "a.jpg", "caption": "x", "system": "y"},
            ["a.jsonl: image_path → image, caption → caption, system → system prompt"],
        ),
        ({"photo": "a.jpg", "query": "x"}, ["a.jsonl: photo → image, query → question, no captions"]),
    ],
)
def test_what_was_understood_is_said_once(record: dict[str, object], said: list[str]) -> None:
    messages: list[str] = []
    options = ReadOptions(on_columns=messages.append)
    reader = ColumnReader(options, "/d/a.jsonl")
    for more in ({}, {}, {"id": 3}):
        reader.read_record({**record, **more}, RowLocation(Path("/d/a.jsonl"), 1, 1))
    assert messages == said


@pytest.mark.parametrize("image_name", ["image_path", "file_name", "Image", "image path", "imagePath", "Photo", "IMG"])
@pytest.mark.parametrize("caption_name", ["caption", "Captions", "text", "Description", "Alt text"])
def test_case_blanks_hyphens_and_underscores_do_not_matter(image_name: str, caption_name: str) -> None:
    [example] = read({image_name: "cat.jpg", caption_name: " a cat\n", "split": 3})
    assert (example.images[0].path, example.reference) == (Path("/d/cat.jpg"), "a cat")
    assert (example.unread_keys, example.is_trimmed) == (("split",), True)


def test_a_row_may_have_its_own_question() -> None:
    """bugs/csv-question-column: a question was dropped, and the prompt of all rows was asked instead."""
    for question, answer in (("question", "answer"), ("Prompt", "caption"), ("instruction", "response")):
        [example] = read({"image_path": "cat.jpg", question: " what? ", answer: "a cat", "system": "Be brief."})
        turns = Turn("system", ("Be brief.",)), Turn("user", (CAT, "what?")), Turn("assistant", ("a cat",))
        assert (example.turns, example.unread_keys, example.is_trimmed) == (turns, (), True)


def test_a_row_without_a_caption_is_a_question() -> None:
    """bugs/predict-unanswered"""
    [plain] = read({"image_path": "cat.jpg"})
    [asked] = read({"image_path": "cat.jpg", "question": "what?"})
    assert plain.turns == (Turn("user", (CAT, "q")),)
    assert asked.turns == (Turn("user", (CAT, "what?")),)


def test_blanks_stay_if_the_options_say_so() -> None:
    [example] = read({"file_name": "a.jpg", "text": " a cat\r\n"}, ReadOptions(trim=False))
    assert (example.reference, example.is_trimmed) == (" a cat\r\n", False)
    [example] = read({"file_name": "a.jpg", "text": "a cat"})
    assert not example.is_trimmed


def test_an_id_in_capitals_is_the_rows_name() -> None:
    [example] = read({"ID": 7, "Image": "cat.jpg", "Text": "a"})
    assert (example.id, example.unread_keys) == ("7", ())


def test_several_captions_are_several_examples() -> None:
    examples = read({"id": 7, "file_name": "cat.jpg", "captions": ["a", "b"]})
    assert [(example.id, example.reference, example.row) for example in examples] == [("7_1", "a", 1), ("7_2", "b", 1)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"file_name": "a.jpg", "caption": None}, "the caption is empty"),
        (
            {"file_name": "a.jpg", "note": "a", "more": "b"},
            "which column holds the captions; the columns are file_name",
        ),
        ({"file_name": "a.jpg", "text": "a", "question": " "}, "'question' is empty"),
        ({"file_name": "a.jpg", "text": "a", "question": ["b"]}, "'question' is a list"),
        ({"file_name": "a.jpg", "text": "a", "question": "b", "prompt": "c"}, "'prompt', which this format"),
        ({"file_name": "a.jpg", "text": "a", "answer": "b"}, "'answer', which this format does not read"),
        (
            {"file_name": "a.jpg", "text": "a", "images": ["b.jpg", "c.jpg"]},
            "'images', which this format does not read",
        ),
        ({"file_name": "a.jpg", "text": "a", "loss_weight": 0}, "marked as not to be learned (loss_weight)"),
        ({"file_name": "a.jpg", "text": "a", "loss_weight": 0.5}, "'loss_weight' of the row is 0.5"),
        ({"caption": "a"}, "which column holds the images; the columns are caption (text)"),
        ({"file_name": "a.jpg", "caption": "a", "captions": ["b"]}, "which column holds the captions"),
        ({"file_name": "a.jpg", "image_path": "a.jpg", "text": "b"}, "which column holds the images"),
        ({"file_name": "a.jpg", "captions": []}, "the caption is empty"),
        ({"file_name": "a.jpg", "label": 3}, "'label' is a number"),
        ({"file_name": "a.jpg", "text": "a", "video": "a.mp4"}, "'video'"),
        ({"file_name": "https://x/a.jpg", "text": "a"}, "URL"),
    ],
)
def test_broken_records_are_refused(record: dict[str, object], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read(record)
    assert message in caught.value.message
    assert caught.value.hint
