import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.errors import LorgnetteError
from lorgnette.report.predictions import load_thumbnails, read_predictions, write_predictions
from lorgnette.types import PixelBox, PredictionRow

ROWS = [
    PredictionRow("a", (Path("/x/one.png"), Path("/x/two.png")), "COCO Yes:", ("一只猫\n两行", "猫"), "a cat", "猫"),
    PredictionRow("b", (), "hello \u2028 there", (), None, None),
    PredictionRow(
        "c", (), "where?", ("here", "there"), "nowhere", "there",
        tuned_boxes=(PixelBox((1.5, 2.0, 3.0, 4.0), "cat", 1, 0.5), PixelBox((0.0, 0.0))),
        reference_boxes=((PixelBox((1.0, 2.0, 3.0, 4.0)),), ()),
    ),
]  # fmt: skip


def test_predictions_round_trip(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.jsonl", ROWS)
    assert read_predictions(tmp_path / "predictions.jsonl") == ROWS
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert "一只猫" in lines[0]
    assert "_boxes" not in lines[0]
    assert lines[-1].endswith(
        '"tuned_boxes": [{"corners": [1.5, 2.0, 3.0, 4.0], "label": "cat", "image": 1, "score": 0.5}, '
        '{"corners": [0.0, 0.0]}], "reference_boxes": [[{"corners": [1.0, 2.0, 3.0, 4.0]}], []]}'
    )


def test_relative_images_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder does not matter, even if it has a file of this name."""
    path = tmp_path / "answers" / "predictions.jsonl"
    write_predictions(path, [PredictionRow("a", (Path("p/0.png"), Path("../1.png")), "", (), tuned="a")])
    for name in ("here/p/0.png", "answers/p/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = (tmp_path / "answers" / "p" / "0.png", tmp_path / "1.png")
    for folder, name in (("here", "../answers/predictions.jsonl"), ("answers", "predictions.jsonl")):
        monkeypatch.chdir(tmp_path / folder)
        assert [row.images for row in read_predictions(Path(name))] == [expected]


def test_rows_of_the_first_versions_are_read(tmp_path: Path) -> None:
    """They called the images pictures."""
    path = tmp_path / "predictions.jsonl"
    row = {
        "id": "a",
        "pictures": ["/x/a.png"],
        "prompt": 'say "pictures"',
        "references": [],
        "base": None,
        "tuned": "t",
    }
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"images": ["/y/b.png"]}), encoding="utf-8")
    first, second = read_predictions(path)
    assert (first.images, first.prompt, second.images) == ((Path("/x/a.png"),), 'say "pictures"', (Path("/y/b.png"),))


def test_an_invalid_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('\n{"id": "a"}\n')
    with pytest.raises(LorgnetteError, match="line 2"):
        read_predictions(path)
    with pytest.raises(LorgnetteError, match="cannot read"):
        read_predictions(tmp_path / "absent.jsonl")


def test_all_missing_keys_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a", "tuned": "t"}\n')
    with pytest.raises(LorgnetteError, match="it has no 'images', 'prompt', 'references'") as caught:
        read_predictions(path)
    assert "boxes.md" in str(caught.value.hint)
    path.write_text('{"id": "a", "images": [], "prompt": "", "references": [], "tuned_boxes": [{"label": "a"}]}\n')
    with pytest.raises(LorgnetteError, match="tuned_boxes: 0: corners: Field required"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tuned", 5, r"\(tuned: Input should be a valid string\)"),
        ("prompt", None, r"\(prompt: Input should be a valid string\)"),
        ("images", "a.png", r"\(images: Input should be a valid array\)"),
        ("references", [["a"]], r"\(references: 0: Input should be a valid string\)"),
        ("base_boxes", [{"corners": [1, 2, 3]}], "a box has 3 numbers"),
        ("reference_boxes", [[{"corners": []}]], "a box has 0 numbers"),
        ("reference_boxes", [[]] * 9, "boxes of 9 references"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(field: str, value: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, ROWS)
    first, second, *_ = path.read_text(encoding="utf-8").split("\n")
    path.write_text(first + "\n" + json.dumps(json.loads(second) | {field: value}), encoding="utf-8")
    with pytest.raises(LorgnetteError, match=f"{message}(.|\n)*line 2"):
        read_predictions(path)


def test_file_is_utf8_with_or_without_bom(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, ROWS)
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    assert read_predictions(path) == ROWS
    path.write_text(text, encoding="utf-16")
    with pytest.raises(LorgnetteError, match="in UTF-8"):
        read_predictions(path)


def test_caption_has_all_answers() -> None:
    assert ROWS[0].caption == "after: 猫\nreference: 一只猫\n两行\nreference: 猫\nbefore: a cat"
    assert ROWS[1].caption == ""
    cut = replace(ROWS[0], references=(), base_is_cut=True, tuned_is_cut=True)
    assert cut.caption == "after: 猫 …\nbefore: a cat …"


def test_unreadable_images_are_skipped(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "two.png")
    row = PredictionRow("a", (tmp_path / "one.png", tmp_path / "two.png"), "", ("r",))
    assert [(image.size, caption) for image, caption in load_thumbnails([row], 15)] == [((15, 10), "reference: r")]
