"""Checks of boxes against the sizes of their images."""

from pathlib import Path

import pytest

from lorgnette.data import read
from lorgnette.data.boxes import check_boxes, convert_to_pixels
from lorgnette.data.checks.data_report import check_rows
from lorgnette.data.formats.objects import fill_turns
from lorgnette.errors import LorgnetteError
from lorgnette.types import Box, Example, Image, Turn


def build_row(*boxes: Box) -> Example:
    images = Image(Path("a.png")), Image(Path("b.png"))
    return Example("1", (Turn("user", (*images, "q")), Turn("assistant", boxes)), Path("a.jsonl"), 1)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (Box((0, 0, 640, 480)), ""),
        (Box((-0.9, 0, 640.9, 480.9)), ""),
        (Box((0, 0, 1, 1), unit="sides"), ""),
        (Box((640, 480)), ""),
        (Box((), "a cat"), ""),
        (Box((0, 0, 320, 900), image=1), ""),
        (Box((10, 20, 10, 40), "a cat"), "box 1 (a cat [10, 20, 10, 40]) has no area"),
        (Box((30, 20, 10, 40)), "has no area"),
        (Box((10, 20, 642, 40)), "box 1 ([10, 20, 642, 40]) lies outside its image, which has 640×480 pixels"),
        (Box((-2, 20, 30, 40)), "outside"),
        (Box((0, 0, 320, 482)), "outside"),
        (Box((0, 0, 330, 20), image=1), "which has 320×900 pixels"),
        (Box((0, 0, 1.1, 1), unit="sides"), "outside"),
        (Box((700, 20)), "point 1 ([700, 20]) lies outside"),
    ],
)
def test_a_box_has_area_and_lies_in_its_image(box: Box, message: str) -> None:
    if not message:
        return check_boxes(build_row(box), [(640, 480), (320, 900)])
    with pytest.raises(LorgnetteError) as caught:
        check_boxes(build_row(box), [(640, 480), (320, 900)])
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("kind", "numbers", "message", "unit"),
    [
        ("norm1", [0.25, 0, 1.5, 1], "box 1 (a cat [0.25, 0, 1.5, 1])", "shares of width and height, 0 to 1"),
        ("norm1000", [0, 0, 1500, 1], "box 1 (a cat [0, 0, 1500, 1])", "thousandths of width and height, 0 to 1000"),
        ("real", [0, 0, 1500, 1], "box 1 (a cat [0, 0, 1500, 1])", "as people see it, after its EXIF rotation"),
    ],
)
def test_a_box_is_named_as_it_is_written(kind: str, numbers: list[float], message: str, unit: str) -> None:
    objects = {"ref": ["a cat"], "bbox": [numbers], "bbox_type": kind}
    turns = Turn("user", (Image(Path("a.png")), "q")), Turn("assistant", ("<ref-object><bbox>",))
    example = Example("1", fill_turns(turns, objects), Path("a.jsonl"), 1)
    with pytest.raises(LorgnetteError) as caught:
        check_boxes(example, [(640, 480)])
    assert caught.value.message.startswith(f"{message} lies outside")
    assert unit in str(caught.value.hint)


def test_shares_become_pixels() -> None:
    assert convert_to_pixels(Box((0.5, 0.25), "x", 1, "sides"), (640, 480)) == Box((320, 120), "x", 1)


def test_check_names_the_row_and_counts_boxes(make_image, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make_image("a.png", size=(64, 48))
    turns = '"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "<bbox>"}]'
    path = tmp_path / "a.jsonl"
    boxes = ([1, 2, 30, 40], [1, 2, 30, 60])
    path.write_text("".join(f'{{{turns}, "images": ["a.png"], "objects": {{"bbox": [{box}]}}}}\n' for box in boxes))
    report = check_rows(read(path))
    assert (report.num_usable, report.num_boxes, report.num_rows_with_boxes) == (1, 1, 1)
    [problem] = report.problems
    assert (problem.row, problem.fact) == (2, "box 1 ([1, 2, 30, 60]) lies outside its image, which has 64×48 pixels")
