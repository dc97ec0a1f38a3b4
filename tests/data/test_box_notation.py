"""Boxes in texts: what is found, and what stays text."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.data import prepare, read
from lorgnette.data.box_notation import TextBoxUnit, find_boxes, split_text_boxes
from lorgnette.data.boxes import check_boxes
from lorgnette.errors import LorgnetteError
from lorgnette.types import Box, Example, Image, Problem, Turn, TurnPart

NAMED = "<|object_ref_start|>a cat<|object_ref_end|>"
MARKED = "<|box_start|>(12,34),(56,78)<|box_end|>"
BOX = Box((12, 34, 56, 78))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NAMED + MARKED, [Box(BOX.corners, "a cat")]),
        (f"{NAMED} {MARKED}{MARKED}", [Box(BOX.corners, "a cat"), BOX]),
        (f"Find {NAMED}.", [Box((), "a cat")]),
        ("click <|box_start|>(246,113)<|box_end|>", [Box((246, 113))]),
        ("<|box_start|>somewhere<|box_end|>", []),
        ('{"bbox_2d": [12, 34, 56, 78], "label": "a cat"}', [Box(BOX.corners, "a cat")]),
        ('{\n"bbox_2d": [12, 34, 56, 78]\n}', [BOX]),
        ('```json\n[\n\t{"bbox_2d": [12, 34, 56, 78], "label": "a } \\" {"}\n]\n```', [Box(BOX.corners, 'a } " {')]),
        ('{"label": "a cat", "point_2d": [1.5, 2]}', [Box((1.5, 2), "a cat")]),
        ('{"bbox_2d": [12, 34, 56]}', []),
        ('{"bbox_2d": [12, 34, 56, NaN]}', []),
        ('{"bbox_2d": [12, 34, 56, 1e12]}', []),
        (f'{{"bbox_2d": [12, 34, 56, 1{"0" * 400}]}}', []),
        ('{"bbox_2d": [12, 34, 56, 78], "label": null}', [BOX]),
        ('{"bbox_2d": [12, 34, 56, 78], "label": "\\ud800"}', [Box(BOX.corners, "?")]),
        ('{"bbox_2d": [12, 34, 56, true]}', []),
        ('{"bbox_2d": [12, 34, 56, 78]', []),
        ("(12,34),(56,78) and [12, 34, 56, 78]", []),
    ],
)
def test_boxes_are_found_in_both_notations(text: str, expected: list[Box]) -> None:
    assert [found.box for found in find_boxes(text)] == expected


def test_bare_numbers_are_boxes_on_request() -> None:
    text = "one (12,34),(56,78) two [12, 34, 56, 78] three [1, 2]"
    assert [(found.box, text[found.start : found.end]) for found in find_boxes(text, with_bare=True)] == [
        (BOX, "(12,34),(56,78)"),
        (BOX, "[12, 34, 56, 78]"),
    ]
    assert [found.box for found in find_boxes("[1, 2]", with_bare=True)] == [Box((1, 2))]


def split(*parts: TurnPart, unit: TextBoxUnit = "pixels", images: int = 1) -> tuple[TurnPart, ...]:
    user = Turn("user", (*[Image(Path("a.png"))] * images, "Where?"))
    example = Example("1", (user, Turn("assistant", parts)), Path("a.jsonl"), 1)
    return split_text_boxes(example, unit).turns[1].parts


def test_texts_are_split_at_their_boxes() -> None:
    assert split(f"There: {NAMED}{MARKED}, and so on") == ("There: ", Box(BOX.corners, "a cat"), ", and so on")
    assert split(MARKED, unit="thousandths") == (Box((0.012, 0.034, 0.056, 0.078), unit="sides"),)
    assert split(NAMED, unit="thousandths") == (Box((), "a cat"),)
    assert split("(12,34),(56,78)") == ("(12,34),(56,78)",)


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ('[{"bbox_2d": [12, 34, 56, 78]}, {"bbox_2d": [12, 34, 56, 78]}]', True),
        ('```json\n[\n\t{"bbox_2d": [12, 34, 56, 78]}\n]\n```', True),
        ('{"bbox_2d": [12, 34, 56, 78]}', True),
        ('Here: [{"bbox_2d": [12, 34, 56, 78]}]', False),
        (f"[{MARKED}]", False),
    ],
)
def test_a_json_list_of_boxes_is_its_boxes(text: str, is_list: bool) -> None:
    assert all(part == BOX for part in split(text)) == is_list


def test_a_box_in_a_text_needs_one_image() -> None:
    assert split(f"See {NAMED}.", images=2)[1] == Box((), "a cat")
    for images in (0, 2):
        with pytest.raises(LorgnetteError, match="a text has a box, and the row has"):
            split(MARKED, images=images)


def test_a_file_is_read_with_the_unit_of_its_texts(tmp_path: Path) -> None:
    path, turns = tmp_path / "a.jsonl", [{"role": "user", "content": "q"}, {"role": "assistant", "content": MARKED}]
    records = [{"messages": turns, "images": ["a.png"]}, {"messages": turns}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    row, problem = read(path, text_boxes="pixels")
    assert isinstance(row, Example)
    assert row.boxes == (BOX,)
    assert isinstance(problem, Problem)
    assert (problem.row, "under 'objects'" in problem.hint) == (2, True)
    assert isinstance(plain := next(iter(read(path))), Example)
    assert (plain.reference, plain.boxes) == (MARKED, ())


@pytest.mark.parametrize(
    ("unit", "size", "message", "has_other"),
    [
        ("pixels", (50, 50), "box 1 ([12, 34, 56, 78]) lies outside", True),
        ("thousandths", (50, 50), "", False),
        ("pixels", (640, 480), "", False),
    ],
)
def test_the_other_unit_is_offered(unit: TextBoxUnit, size: tuple[int, int], message: str, has_other: bool) -> None:
    turns = Turn("user", (Image(Path("a.png")), "q")), Turn("assistant", (MARKED,))
    example = split_text_boxes(Example("1", turns, Path("a.jsonl"), 1), unit)
    if not message:
        return check_boxes(example, [size])
    with pytest.raises(LorgnetteError) as caught:
        check_boxes(example, [size])
    assert message in caught.value.message
    assert ("or choose --text-boxes thousandths" in str(caught.value.hint)) is has_other


def test_numbers_beyond_thousandths_offer_no_thousandths() -> None:
    text = '{"bbox_2d": [100, 200, 1500, 400]}'
    example = Example("1", (Turn("user", (Image(Path("a.png")), text)),), Path("a.jsonl"), 1)
    with pytest.raises(LorgnetteError) as caught:
        check_boxes(split_text_boxes(example, "pixels"), [(640, 480)])
    assert "--text-boxes" not in str(caught.value.hint)
    with pytest.raises(LorgnetteError) as caught:
        check_boxes(split_text_boxes(example, "thousandths"), [(640, 480)])
    assert "[100, 200, 1500, 400]" in caught.value.message
    assert "--text-boxes pixels" in str(caught.value.hint)


def test_prepare_writes_the_boxes_of_texts_as_objects(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    names = [make_image(f"{i}.png", (i, 0, 0), size=(640, 480)).name for i in range(4)]
    turns = [{"role": "user", "content": f"Find {NAMED}."}, {"role": "assistant", "content": MARKED}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": turns, "images": [name]}) + "\n" for name in names))
    result = prepare(path, tmp_path / "out", text_boxes="thousandths", export_format="swift", holdout=1)
    record = json.loads(result.all_path.read_text().splitlines()[0])
    assert record["messages"][1]["content"] == "<bbox>"
    assert record["objects"] == {"ref": ["a cat"], "bbox": [[0.012, 0.034, 0.056, 0.078]], "bbox_type": "norm1"}
    assert isinstance(row := next(iter(read(result.train_path))), Example)
    assert row.boxes == (Box((0.012, 0.034, 0.056, 0.078), unit="sides"),)


@pytest.mark.parametrize("part", ['{\\"', '{"', '{"a\\"', "<|object_ref_start|>", "[", "(1,2) ", '{"bbox_2d": ['])
def test_a_long_answer_takes_no_time(part: str) -> None:
    start = time.perf_counter()
    assert list(find_boxes(part * 20_000, with_bare=True)) == []
    assert time.perf_counter() - start < 5
