"""What is asked once, and what counts as data."""

from pathlib import Path

import PIL.Image
import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import group_by_prompt, read_examples


def test_a_picture_and_prompt_is_asked_once(captions: Path) -> None:
    captions.write_text("image_path,caption\nred.png,one\nblue.png,two\nred.png,three\nred.png,one\n")
    first, second = group_by_prompt(read_examples(captions, "What?"))
    assert first.references == ("one", "three", "one")  # twice, as the official scores count it
    assert (second.references, second.text, second.image_paths) == (
        ("two",),
        "What?",
        (captions.with_name("blue.png"),),
    )
    again = group_by_prompt([*read_examples(captions, "What?"), *read_examples(captions, "Where?")])
    assert [(one.image_paths[0].name, one.text) for one in again] == [
        ("red.png", "What?"), ("blue.png", "What?"), ("red.png", "Where?"), ("blue.png", "Where?"),
    ]  # fmt: skip


def test_a_folder_that_says_what_it_shows_is_data(captions: Path) -> None:
    folder = captions.parent
    assert {one.references for one in group_by_prompt(read_examples(folder, "p"))} == {
        ()
    }  # captions.csv is not metadata.csv
    (folder / "metadata.csv").write_text("file_name,caption\nred.png,it is red\n")
    assert [one.references for one in group_by_prompt(read_examples(folder, "p"))] == [("it is red",)]
    (folder / "metadata.csv").unlink()
    for picture in folder.glob("*.png"):
        picture.with_suffix(".txt").write_text(picture.stem)
    assert {one.references for one in group_by_prompt(read_examples(folder, "p"))} >= {("red",), ("blue",)}


def test_a_coco_file_is_data(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (40, 40)).save(tmp_path / "1.jpg")
    (tmp_path / "captions_val.json").write_text(
        '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": ['
        '{"id": 1, "image_id": 1, "caption": "a"}, {"id": 2, "image_id": 1, "caption": "b"}]}'
    )
    [one] = group_by_prompt(read_examples(tmp_path / "captions_val.json", "p"))
    assert one.references == ("a", "b")


def test_broken_rows_are_all_named(captions: Path) -> None:
    with captions.open("a") as file:
        file.write("gone.png,a\nred.png,\n")
    with pytest.raises(LorgnetteError, match=r"2 of 8 rows(.|\n)*row 8(.|\n)*row 9(.|\n)*and ask again") as refused:
        read_examples(captions, "what?")
    assert refused.value.exit_status == 1
    assert len(read_examples(captions, "what?", max_rows=6)) == 6
