"""Rows in memory become a data set on disk with the same pixels and texts."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from lorgnette import data
from lorgnette.data.memory_rows import is_in_memory, write_rows
from lorgnette.data.row_location import ColumnChoice
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Box, Example, Image

RED = PIL.Image.new("RGB", (8, 6), "red")


def read(rows: Any, folder: Path, **options: Any) -> list[Example]:
    written = write_rows(rows, folder, **options)
    examples = list(data.read(written.path, prompt="p", trim=False))
    assert all(isinstance(example, Example) for example in examples)
    assert written.num_rows == len(examples)
    return examples  # type: ignore[return-value]


def list_texts(example: Example) -> list[tuple[str, ...]]:
    return [
        (turn.role, *("IMAGE" if isinstance(part, Image) else part for part in turn.parts)) for turn in example.turns
    ]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_the_pixels_of_an_image_are_those_of_its_file(mode: str, tmp_path: Path) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8))
    image = PIL.Image.new(mode, noise.size, 40000) if mode == "I;16" else noise.convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    image.save(tmp_path / f"file.{suffix}")
    [example] = read([{"image": image, "caption": "a"}], tmp_path / "data")
    assert example.images[0].path.parent == tmp_path / "data" / "images"
    expected = data.load_image(tmp_path / f"file.{suffix}").tobytes()
    assert data.load_image(example.images[0].path).tobytes() == expected


def test_a_photo_stays_upright(tmp_path: Path) -> None:
    """A telephone's JPEG is turned by a tag; the image in memory has the tag too."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)).save(
        tmp_path / "photo.jpg", exif=exif
    )
    [example] = read([{"image": PIL.Image.open(tmp_path / "photo.jpg"), "caption": "a"}], tmp_path / "data")
    from_file, from_memory = data.load_image(tmp_path / "photo.jpg"), data.load_image(example.images[0].path)
    assert from_memory.size == from_file.size == (9, 7)
    assert from_memory.tobytes() == from_file.tobytes()


def test_every_way_to_give_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RED.save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    content = (tmp_path / "red.png").read_bytes()
    ways: list[Any] = [RED, np.asarray(RED), content, {"bytes": content, "path": None}]
    for number, image in enumerate(ways):
        [example] = read([{"image": image, "caption": " a\n"}], tmp_path / f"data-{number}")
        assert data.load_image(example.images[0].path).tobytes() == RED.tobytes()
        assert list_texts(example) == [("user", "IMAGE", "p"), ("assistant", " a\n")]
    for number, path in enumerate(["red.png", Path("red.png"), tmp_path / "red.png"]):  # a file stays where it is
        [example] = read([{"image": path, "caption": "a"}], tmp_path / f"path-{number}")
        assert example.images[0].path == tmp_path / "red.png"


def test_the_folder_may_be_relative_and_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_rows([{"image": RED, "caption": "a"}], Path("data")).path == Path("data/data.jsonl")
    Path("data").rename("moved")
    [example] = data.read(Path("moved/data.jsonl"))
    assert isinstance(example, Example)
    assert data.load_image(example.images[0].path).size == (8, 6)


def test_conversations_and_questions(tmp_path: Path) -> None:
    part = {"type": "image", "image": RED}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    answer = {"role": "assistant", "content": "a cat"}
    one, two, three = read(
        [
            {"messages": [*messages, answer]},
            {"image": [RED, RED], "messages": [{"role": "user", "content": "<image> or <image>"}, answer]},
            {"conversations": [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}], "image": RED},
        ],
        tmp_path / "a",
    )
    assert list_texts(one) == [("user", "IMAGE", "what?"), ("assistant", "a cat")]
    assert list_texts(two) == [("user", "IMAGE", " or ", "IMAGE"), ("assistant", "a cat")]
    assert list_texts(three) == [("user", "IMAGE", "\nx"), ("assistant", "y")]
    [question] = read([{"image": RED, "question": "what?", "answer": "red", "id": "7"}], tmp_path / "b")
    assert list_texts(question) == [("user", "IMAGE", "what?"), ("assistant", "red")]
    assert question.id == "7"


def test_boxes_may_be_an_array(tmp_path: Path) -> None:
    objects = {"ref": ["a cat"], "bbox": np.array([[1, 2, 7, 5.5]]), "image_id": None}
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "<ref-object><bbox>"}]
    [example] = read([{"messages": turns, "images": [RED], "objects": objects}], tmp_path / "data")
    assert example.boxes == (Box((1, 2, 7, 5.5), "a cat"),)


def test_a_data_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    RED.save(tmp_path / "red.png")
    frame = pandas.DataFrame({"Photo": [str(tmp_path / "red.png")] * 2, "text": ["a", "b"], "note": [None, "x"]})
    written = write_rows(frame, tmp_path / "data", columns=ColumnChoice("Photo", "text"))
    assert written.num_rows == 2
    assert "note" in str(written.remarks[0].problem)  # a key that is not read is said
    frame["text"] = ["a", None]
    with pytest.raises(LorgnetteError, match="1 of 2 rows cannot be used") as raised:
        write_rows(frame, tmp_path / "other", columns=ColumnChoice("Photo", "text"))
    assert "the rows in memory, row 2: the caption is empty" in str(raised.value)
    assert not list(tmp_path.glob("*other*"))  # all or nothing


def test_rows_of_another_library(tmp_path: Path) -> None:
    """A torch Dataset and the like: an index that ends."""

    class Rows:
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": RED, "caption": "ab"[index]}

    assert [example.reference for example in read(Rows(), tmp_path / "a")] == ["a", "b"]
    seen: list[int] = []
    rows = ({"image": RED, "caption": str(i)} for i in range(3))
    assert len(read(rows, tmp_path / "b", on_progress=seen.append)) == sum(seen) == 3


def test_bad_rows_are_named_or_left_out(tmp_path: Path) -> None:
    rows = [{"image": RED, "caption": "a"}, {"image": object(), "caption": "b"}, "c", {"image": RED, "caption": ""}]
    with pytest.raises(LorgnetteError) as raised:
        write_rows(rows, tmp_path / "data")
    for text in ("3 of 4 rows", "row 2: 'image' is a object", "row 3: the row is a str, not a dict", "row 4: the capt"):
        assert text in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    written = write_rows(rows, tmp_path / "data", on_bad_row="skip")
    assert (written.num_rows, [problem.row for problem in written.problems]) == (1, [2, 3, 4])
    with pytest.raises(UsageError, match="the output folder exists"):
        write_rows(rows, tmp_path / "data")


def test_an_empty_cell_is_an_empty_caption(tmp_path: Path) -> None:
    """None and NaN are what libraries write for a cell without a text; a row without the key is a question."""
    bad = [{"image": RED, "caption": value} for value in (None, float("nan"), "")]
    with pytest.raises(LorgnetteError, match=r"3 of 5 rows .*\n.*the caption is empty.*rows 2–4") as raised:
        write_rows([{"image": RED, "caption": "a"}, *bad, {"image": RED}], tmp_path / "data")
    assert "no assistant turn" not in str(raised.value)
    question = {"image": RED, "question": "What?", "id": None}
    assert len(read([{"image": RED, "caption": "a", "text": None}, {"image": RED}, question], tmp_path / "b")) == 3
    for row in ({"image": RED}, question):
        with pytest.raises(LorgnetteError, match="row 2: the caption is empty"):
            write_rows([{"image": RED, "caption": "a"}, row], tmp_path / "c", needs_answer=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": RED, "caption": "a"}, "one object, not rows · a dict with 'image', 'caption'"),
        (b"x", "no rows · a bytes"),
        (RED, "no rows · a Image"),
        (3, "no rows · a int"),
        ([], "no rows"),
    ],
)
def test_what_is_no_rows_is_refused(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match=message):
        write_rows(rows, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_are_no_image(tmp_path: Path) -> None:
    for image, message in (
        (np.zeros((8, 8, 3)), "its dtype is float64; give uint8"),
        (np.zeros((8, 8), np.float32), "its dtype is float32; give uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"an array of the shape \[3, 8, 8\] is no image · "),
        (PIL.Image.new("HSV", (8, 8)), "mode HSV cannot be written"),
    ):
        with pytest.raises(LorgnetteError, match=message.replace(" · ", "")):
            write_rows([{"image": image, "caption": "a"}], tmp_path / "data")


@pytest.mark.parametrize(("value", "expected"), [("a.csv", False), (Path("a"), False), ([], True), (RED, True)])
def test_a_path_is_not_in_memory(value: Any, expected: bool) -> None:
    assert is_in_memory(value) is expected


def test_a_split_of_a_dataset_dict_is_asked_for(tmp_path: Path) -> None:
    class Split(list[Any]):
        features = None

    with pytest.raises(UsageError, match=r"choose one of its splits, such as data\['train'\]"):
        write_rows({"train": Split(), "test": Split()}, tmp_path / "data")
