"""ms-swift's objects: read, written, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data import read
from lorgnette.data.export import filter_exportable
from lorgnette.data.formats import EXPORTERS, ExportFormat, messages, queries, read_record
from lorgnette.data.portable_records import ANY_PROMPT, to_record
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Box, Example, Image, Problem, Turn

DOG, WOMAN = [331.5, 761.4, 853.5, 1594.8], [676.5, 685.8, 1099.5, 1427.4]
FORM, BIG = ('{"bbox_2d": <bbox>, "label": "' + label + '<ref-object>"}' for label in ("", "big "))
OBJECTS: dict[str, Any] = {"ref": ["a dog", "a woman"], "bbox": [DOG, WOMAN]}


def build_record(question: str, answer: str, objects: object, num_images: int = 1) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>" * num_images + question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": [f"/x/{i}.jpg" for i in range(num_images)], "objects": objects}


def read_answer(location: RowLocation, *args: Any) -> tuple[object, ...]:
    return messages.read_record(build_record(*args), location).turns[1].parts


def test_the_rows_of_ms_swifts_documentation_are_read(location: RowLocation) -> None:
    answer = "<ref-object><bbox> and <ref-object><bbox> are playing"
    assert read_answer(location, "Describe.", answer, OBJECTS) == (
        Box(tuple(DOG), "a dog"),
        " and ",
        Box(tuple(WOMAN), "a woman"),
        " are playing",
    )
    sheep = {"ref": ["sheep"], "bbox": [DOG, WOMAN]}
    row = messages.read_record(build_record("Find the <ref-object>!", "<bbox><bbox>", sheep), location)
    assert row.turns[0].parts[1:] == ("Find the ", Box((), "sheep"), "!")
    assert row.turns[1].parts == row.boxes == (Box(tuple(DOG)), Box(tuple(WOMAN)))
    click = "Action: click(start_box='<bbox>')"
    assert read_answer(location, "Open.", click, {"ref": [], "bbox": [[615, 226]]})[1] == Box((615, 226))


def test_units_and_images_are_read(location: RowLocation) -> None:
    objects = {"bbox": [[0.25, 0.5], [0.5, 1]], "bbox_type": "norm1", "image_id": [1]}
    assert read_answer(location, "", "<bbox><bbox>", objects, 2) == (
        Box((0.25, 0.5), image=1, unit="sides"),
        Box((0.5, 1), unit="sides"),
    )
    objects = {"bbox": [[250, 500]], "bbox_type": "norm1000"}
    assert read_answer(location, "", "<bbox>", json.dumps(objects)) == (Box((0.25, 0.5), unit="sides"),)
    record = {"query": "<image>Where?", "response": "<bbox>", "images": ["/x/a.jpg"], "objects": {"bbox": [DOG]}}
    assert queries.read_query(record, location).boxes == (Box(tuple(DOG)),)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        (f"[\n\t{FORM},\n\t{FORM}\n]", OBJECTS["ref"]),
        (f'```json\n[{{"label": "<ref-object>", "bbox_2d": <bbox>}}, {BIG}]\n```', ["a dog", "big a woman"]),
        ("<ref-object><bbox><ref-object><bbox>", OBJECTS["ref"]),
    ],
)
def test_a_json_list_of_placeholders_is_its_boxes(location: RowLocation, answer: str, labels: list[str]) -> None:
    assert read_answer(location, "", answer, OBJECTS) == (Box(tuple(DOG), labels[0]), Box(tuple(WOMAN), labels[1]))


def test_brackets_around_bare_placeholders_stay(location: RowLocation) -> None:
    assert read_answer(location, "", "[<bbox>]", {"bbox": [DOG]}) == ("[", Box(tuple(DOG)), "]")


def test_placeholders_are_text_without_objects(location: RowLocation) -> None:
    assert read_answer(location, "", "<ref-object><bbox>", {}) == ("<ref-object><bbox>",)


@pytest.mark.parametrize(
    ("answer", "objects", "message"),
    [
        ("<bbox>", {"bbox": [DOG, WOMAN]}, "1 × <bbox> in the texts, but 2 in objects' 'bbox'"),
        ("<bbox><bbox>", {"bbox": [DOG]}, "the texts have more <bbox> than objects' 'bbox' has entries (1)"),
        ("<bbox>", OBJECTS | {"bbox": [DOG]}, "0 × <ref-object> in the texts, but 2 in objects' 'ref'"),
        ("<bbox>", {"bbox": [[1, 2, 3]]}, "box 1 of 'bbox' is not a list of four numbers"),
        ("<bbox>", {"bbox": [[1, 2, 3, "4"]]}, "box 1 of 'bbox'"),
        ("<bbox>", {"bbox": [[1, 2, 3, float("inf")]]}, "box 1 of 'bbox'"),
        ("<bbox>", {"bbox": [[1, 2, 3, 10**400]]}, "box 1 of 'bbox'"),
        ("<bbox>", {"bbox": [DOG], "bbox_type": "cxcywh"}, "'bbox_type' is 'cxcywh'"),
        ("<bbox>", {"bbox": [DOG], "image_id": [1]}, "box 1 of 'bbox' is in image 1, but the row has 1"),
        ("<bbox>", {"bbox": [DOG], "image_id": [True]}, "is in image True"),
        ("<bbox>", {"bbox": [DOG], "image_id": [0, 0]}, "'image_id' has 2 entries, and 'bbox' 1"),
        ("<bbox>", {"bbox": [DOG], "categories": [3]}, "'objects' has 'categories', which is not read"),
        ("<bbox>", [DOG], "'objects' is a list, not an object"),
        ("<bbox>", "[", "broken JSON"),
        ("<bbox>", {"bbox": 3}, "'bbox' is a number, not a list"),
        ("<ref-object>", {"ref": [" "]}, "name 1 of 'ref' is empty"),
    ],
)
def test_what_does_not_fit_is_refused(location: RowLocation, answer: str, objects: object, message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_answer(location, "", answer, objects)
    assert message in caught.value.message


@pytest.mark.parametrize("kind", [{}, {"bbox_type": "real"}])
@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0.1, 0.2, 0.5, 0.9], [0.3, 1]], "all numbers of 'bbox' are between 0 and 1: these are no pixels"),
        ([[0, 0, 1, 1]], "all numbers of 'bbox' are between 0 and 1"),
        ([DOG, [7.1, 8.2, 7.5, 8.9]], "box 2 of 'bbox' is smaller than a pixel"),
    ],
)
def test_shares_without_their_unit_are_refused(
    location: RowLocation, kind: dict[str, str], boxes: list[list[float]], message: str
) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_answer(location, "", "<bbox>" * len(boxes), {"bbox": boxes} | kind)
    assert message in caught.value.message
    assert 'write "bbox_type": "norm1"' in str(caught.value.hint)
    read_answer(location, "", "<bbox>", {"bbox": [[7.1, 8.2, 7.5, 18.9]]} | kind)  # a thin box


def build_example(unit: str = "pixels") -> Example:
    scale = 1.0 if unit == "pixels" else 0.001
    boxes = [
        Box(tuple(v * scale for v in box), name, i, unit) for i, (box, name) in enumerate([(DOG, "a dog"), (WOMAN, "")])
    ]  # type: ignore[arg-type]
    user = Turn("user", (Image(Path("/x/0.jpg")), Image(Path("/x/1.jpg")), "Find ", Box((), "animals"), ": ", boxes[1]))
    return Example("7", (user, Turn("assistant", (*boxes, " done"))), Path("/x/a.jsonl"), 1)


@pytest.mark.parametrize("unit", ["pixels", "sides"])
@pytest.mark.parametrize("name", ["json", "swift"])
def test_exports_keep_boxes(name: ExportFormat, unit: str) -> None:
    example = build_example(unit)
    record = json.loads(json.dumps(EXPORTERS[name].to_record(example, "")))
    [restored] = read_record(record, RowLocation(example.source, 1, 1))
    assert restored.turns == example.turns


@pytest.mark.parametrize("name", ["csv", "llava", "llama-factory", "openai"])
def test_formats_without_boxes_refuse_them(name: ExportFormat) -> None:
    box = Box((1, 2, 3, 4), "a cat")
    row = Example("1", (Turn("user", (Image(Path("/x/0.jpg")), "q")), Turn("assistant", (box,))), Path("/x/a.jsonl"), 1)
    [problem] = filter_exportable([row], name, "q")
    assert isinstance(problem, Problem)


@pytest.mark.parametrize("unit", ["pixels", "sides"])
def test_portable_rows_keep_boxes(tmp_path: Path, unit: str) -> None:
    example = build_example(unit)
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(to_record(example, str)) + "\n")
    [restored] = read(path, prompt=ANY_PROMPT)
    assert isinstance(restored, Example)
    assert restored.turns == example.turns


def test_a_text_with_a_placeholder_cannot_be_written_beside_boxes() -> None:
    example = build_example()
    turns = (example.turns[0], Turn("assistant", ("<bbox> is ", Box((1, 2)))))
    with pytest.raises(LorgnetteError, match="a text contains <bbox>, which is a placeholder"):
        messages.to_record(Example("7", turns, example.source, 1))
    plain = Example("7", (Turn("user", ("q",)), Turn("assistant", ("<bbox>",))), example.source, 1)
    assert read_record(messages.to_record(plain), RowLocation(example.source, 1, 1))[0].turns == plain.turns
