"""Processes encode what one process encodes."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.data.example_table import ExampleTable
from lorgnette.processing import encode_rows as module
from lorgnette.processing.encode_rows import EncodeResult, encode_rows
from lorgnette.processing.processor import Processor
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import Box, Example, Image, Turn


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84), max_length=80))


def build_examples(folder: Path, *, has_boxes: bool) -> ExampleTable:
    examples = list[Example]()
    for number in range(30):
        image = Image(folder / f"{number % 7}.png", "0.png" if number == 7 else "")
        PIL.Image.new("RGB", (40, 50)).save(image.path)
        image = Image(folder / "gone.png") if number % 10 == 4 else image
        box = [Box((1.0, 2.0, 30.0, 40.0), "a cat")] if has_boxes and number % 4 == 0 else []
        answer = Turn("assistant", ("long " * 200 if number % 9 == 5 else f"answer {number}", *box))
        more = (Turn("user", ("And?",)), Turn("assistant", ("no",))) if number % 3 == 0 else ()
        question = Turn("user", (image, "What?") if number % 5 else (image, image, f"Who is {number}?"))
        examples.append(Example(f"identity_{number}", (question, answer, *more), Path("a.csv"), number))
    return ExampleTable(examples)


def describe(result: EncodeResult) -> list[str]:
    rows = [
        (row.example, [box.written for box in row.example.boxes], row.input_ids.tolist(), row.labels.tolist(),
         row.position_ids.tolist(), row.grids, row.image_starts)
        for row in result.rows
    ]  # fmt: skip
    sizes = [array.tolist() for array in (result.rows.sizes.lengths, result.rows.sizes.num_labels)]
    return list(map(repr, [*rows, *result.problems, sizes, result.num_skipped, result.num_flat, digest(result)]))


def digest(result: EncodeResult) -> str:
    value = hashlib.sha256()
    result.rows.update_digest(value, {key: n for n, key in enumerate(result.rows.list_grid_keys())})
    return value.hexdigest()


@pytest.mark.parametrize("has_boxes", [False, True])
def test_processes_encode_what_one_process_encodes(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_boxes: bool
) -> None:
    examples = build_examples(tmp_path, has_boxes=has_boxes)
    expected = describe(encode_rows(processor, examples))
    assert len(expected) == len(examples) + 4
    monkeypatch.setattr(module, "MIN_SHARED_ROWS", 2)
    monkeypatch.setattr(module, "_BLOCK_SIZE", 4)
    monkeypatch.setattr(module, "count_processes", lambda: 2)
    assert describe(encode_rows(processor, examples)) == expected
    assert describe(encode_rows(processor, examples.select([*range(29), 28]))) != expected
    refused = {problem.row for problem in encode_rows(processor, examples).problems}
    assert {4, 14, 24, 5, 23} <= refused < set(range(30))
    plain = [processor.encode(example) for example in examples if example.row not in refused]
    for row, other in zip(encode_rows(processor, examples).rows, plain, strict=True):
        np.testing.assert_array_equal(row.input_ids, other.input_ids)
        np.testing.assert_array_equal(row.labels, other.labels)
        assert row.example == other.example


def test_the_digest_is_that_of_the_rows(processor: Processor, tmp_path: Path) -> None:
    """It does not depend on the other rows of a table, and every field changes it."""
    examples = ExampleTable(row for row in build_examples(tmp_path, has_boxes=False) if row.row % 10 != 4)
    part = [example for example in examples if 8 < example.row < 20]
    whole, alone = encode_rows(processor, examples), encode_rows(processor, ExampleTable(part))
    indices = [i for i, row in enumerate(whole.rows) if row.example in part]
    assert digest(replace(whole, rows=whole.rows.select(indices))) == digest(alone)
    assert digest(replace(whole, rows=whole.rows.select(indices[::-1]))) != digest(alone)
    answer = Turn("assistant", ("another",))
    for turns in (
        (part[0].turns[0], answer, *part[0].turns[2:]),
        (*part[0].turns[:1], replace(answer, has_loss=False), *part[1].turns),
    ):
        changed = ExampleTable([replace(part[0], turns=turns), *part[1:]])
        assert digest(encode_rows(processor, changed)) != digest(alone)
