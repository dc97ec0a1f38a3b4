"""Answers are asked for before weights are read, and printed one a line."""

import json
from pathlib import Path

import pytest

from lorgnette.commands import predict as predict_module
from lorgnette.commands.predict import predict
from lorgnette.errors import LorgnetteError
from lorgnette.report.predictions import PredictionRow, read_predictions


def test_a_lone_answer_is_a_line_of_json() -> None:
    row = PredictionRow("a", (), "what?", (), base='it "is"\ntwo lines', tuned=None)
    name, _, text = predict_module._format_row(row, both=False).partition("\t")
    assert (name, json.loads(text)) == ("a", 'it "is"\ntwo lines')
    assert predict_module._format_row(row, both=True) == 'a\n  before: it "is"\ntwo lines\n  after:  None'


def test_an_empty_prompt_is_a_prompt(captions: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = {"max_new_tokens": 1}
    for prompt, asked in ((None, "COCO Yes:"), ("", ""), ("What?", "What?")):
        rows = predict(captions.with_name("red.png"), model=str(tiny), prompt=prompt, sampling=sampling)
        assert [(row.prompt, row.references, row.tuned) for row in rows] == [(asked, (), None)]
    assert capsys.readouterr().out.count("red.png\t") == 3


def test_answers_are_written_whole(captions: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "said.jsonl"
    rows = predict(captions, model=str(tiny), out=out, sampling={"max_new_tokens": 2, "batch_size": 4})
    assert read_predictions(out) == rows
    assert [row.references for row in rows][:2] == [("it is red",), ("it is green",)]


def test_several_captions_of_a_picture_are_one_question(captions: Path, tiny: Path, capsys) -> None:
    captions.write_text("image_path,caption\nred.png,one\nblue.png,two\nred.png,three\n")
    rows = predict(captions, model=str(tiny), sampling={"max_new_tokens": 1})
    assert [(row.images[0].name, row.references) for row in rows] == [
        ("red.png", ("one", "three")),
        ("blue.png", ("two",)),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_pictures_from_elsewhere(captions: Path, tiny: Path) -> None:
    (captions.parent / "there").mkdir()
    captions.with_name("red.png").rename(captions.parent / "there" / "red.png")
    captions.write_text("image_path,caption\nsomewhere/red.png,one\n")
    with pytest.raises(LorgnetteError, match="missing"):
        predict(captions, model=str(tiny))
    place = str(captions.parent / "there")
    assert len(predict(captions, model=str(tiny), images_from=place, sampling={"max_new_tokens": 1})) == 1
