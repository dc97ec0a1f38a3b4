"""Labels, and answers from before: which rows of a data file become answers, and which are errors."""

from pathlib import Path

import PIL.Image
import pytest

from lorgnette.commands.given_answers import read_given_answers, read_labels
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.console import Terminal
from lorgnette.teaching.images import ImageList, read_images

PROMPT = "What is it?"


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    """1.png, 2.png, a/3.png, its copy a/4.png, and 5.png, which is broken."""
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for number, name in enumerate(("1.png", "2.png", "a/3.png")):
        PIL.Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(folder / name)
    (folder / "a" / "4.png").write_bytes((folder / "a" / "3.png").read_bytes())
    (folder / "5.png").write_text("broken")
    return read_images(folder, PROMPT)


def read(images: ImageList, text: str, labels: tuple[str, ...] = (), name: str = "old.csv") -> dict[str, str]:
    """The answers of a file in another folder than the images."""
    path = images.folder.parent / name
    path.write_text(text)
    return read_given_answers(path, images, labels, Terminal())


def test_rows_with_an_answer_are_found_by_name_path_and_copy(images: ImageList) -> None:
    text = f"image_path,caption\n1.png, a cat \n2.png,\n{images.folder}/a/4.png,ein Hu\u0308hn\n"
    assert read(images, text) == {"1.png": "a cat", "a/3.png": "ein Hühn"}


def test_rows_of_conversations(images: ImageList) -> None:
    row = (
        '{"messages":[{"role":"user","content":"<image>%s"},{"role":"assistant","content":"no"}],"images":["1.png"]}\n'
    )
    assert read(images, row % PROMPT, name="old.jsonl") == {"1.png": "no"}
    with pytest.raises(UsageError, match="an answer to another question") as caught:
        read(images, row % "Who?", name="old.jsonl")
    assert "'Who?'" in str(caught.value.where)
    assert "--prompt" in str(caught.value.hint)


def test_labels_are_those_of_the_list(images: ImageList) -> None:
    assert read(images, "image_path,caption\n1.png,Cat.\n2.png,dog\n", ("cat", "dog")) == {
        "1.png": "cat",
        "2.png": "dog",
    }
    with pytest.raises(UsageError, match="'bird' is no label"):
        read(images, "image_path,caption\n1.png,cat\n2.png,bird\n", ("cat", "dog"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1.png,a\n1.png,b\n", "two answers to 1.png"),
        ("a/3.png,a\na/4.png,b\n", "two answers to a/3.png"),
        ("missing.png,a\n", "missing.png"),
        ("1.png,a\n5.png,a\n", "5.png"),
        ("../other.png,a\n", "an image is not in"),
        ("1.png,\n", "no answer in this file"),
    ],
)
def test_what_cannot_be_taken_is_an_error(rows: str, message: str, images: ImageList) -> None:
    PIL.Image.new("RGB", (40, 40)).save(images.folder.parent / "other.png")
    with pytest.raises(LorgnetteError, match=message):
        read(images, f"image_path,caption\n{rows}")


def test_labels_come_from_a_text_a_file_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\ufeffcat\n\nbig dog, old\n", encoding="utf-8")
    assert read_labels(None) == ()
    assert read_labels(" cat,big dog ,") == ("cat", "big dog")
    assert read_labels(str(file)) == ("cat", "big dog, old")
    assert read_labels(["e\u0301", "b"]) == ("é", "b")
    assert read_labels("x" * 5000 + ",y") == ("x" * 5000, "y")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cat", "not 1"),
        ("", "not 0"),
        ("cat,dog,Cat", "a label comes twice"),
        ("cat,cat.", "a label comes twice"),
        ([f"{number}" for number in range(1001)], "not 1001"),
    ],
)
def test_labels_that_are_none(given: str | list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_labels(given)
