import json
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.errors import LorgnetteError
from lorgnette.report.predictions import PredictionRow, load_thumbnails, read_predictions, write_predictions

ROWS = [
    PredictionRow("a", (Path("one.png"), Path("two.png")), "COCO Yes:", ("一只猫\n两行", "猫"), "a cat", "猫"),
    PredictionRow("b", (), "hello \u2028 there", (), None, None),
]


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.jsonl", ROWS)
    assert read_predictions(tmp_path / "predictions.jsonl") == ROWS
    assert "一只猫" in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('\n{"id": "a"}\n')
    with pytest.raises(LorgnetteError, match="line 2"):
        read_predictions(path)
    with pytest.raises(LorgnetteError, match="cannot be read"):
        read_predictions(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tuned", 5, "5 is no text"),
        ("prompt", None, "null is no text"),
        ("pictures", "a.png", '"a.png" is no list of texts'),
        ("references", [["a"]], r'\["a"\] is no text'),
    ],
)
def test_a_value_of_another_kind_is_named(field: str, value: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, ROWS)
    first, second, _ = path.read_text(encoding="utf-8").split("\n")
    path.write_text(first + "\n" + json.dumps(json.loads(second) | {field: value}), encoding="utf-8")
    with pytest.raises(LorgnetteError, match=f"{said}(.|\n)*line 2"):
        read_predictions(path)


def test_it_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, ROWS)
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    assert read_predictions(path) == ROWS
    path.write_text(text, encoding="utf-16")
    with pytest.raises(LorgnetteError, match="in UTF-8"):
        read_predictions(path)


def test_the_caption_holds_what_was_said() -> None:
    assert ROWS[0].caption == "after: 猫\nreference: 一只猫\n两行\nreference: 猫\nbefore: a cat"
    assert ROWS[1].caption == ""


def test_pictures_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "two.png")
    row = PredictionRow("a", (tmp_path / "one.png", tmp_path / "two.png"), "", ("r",))
    assert [(picture.size, caption) for picture, caption in load_thumbnails([row], 15)] == [((15, 10), "reference: r")]
