"""Answers are asked for before weights are read, and printed one a line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.predictions import PredictionRow, read_predictions
from lorgnette.run import answering, predict


def test_a_lone_answer_is_a_line_of_json() -> None:
    row = PredictionRow("a", (), "what?", "", base='it "is"\ntwo lines', tuned=None)
    name, _, text = answering._line(row, both=False).partition("\t")
    assert (name, json.loads(text)) == ("a", 'it "is"\ntwo lines')
    assert answering._line(row, both=True) == 'a\n  before: it "is"\ntwo lines\n  after:  None'


def test_an_empty_prompt_is_a_prompt(captions: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = {"max_new_tokens": 1}
    for prompt, asked in ((None, "COCO Yes:"), ("", ""), ("What?", "What?")):
        rows = predict(captions.with_name("red.png"), model=str(tiny), prompt=prompt, sampling=sampling)
        assert [(row.prompt, row.reference, row.tuned) for row in rows] == [(asked, "", None)]
    assert capsys.readouterr().out.count("red.png\t") == 3


def test_answers_are_written_whole(captions: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "said.jsonl"
    rows = predict(captions, model=str(tiny), out=out, sampling={"max_new_tokens": 2, "batch_size": 4})
    assert read_predictions(out) == rows
    assert [row.reference for row in rows][:2] == ["it is red", "it is green"]


def test_broken_rows_are_all_named(captions: Path) -> None:
    with captions.open("a") as file:
        file.write("gone.png,a\nred.png,\n")
    with pytest.raises(LorgnetteError, match=r"2 of 8 rows(.|\n)*row 8(.|\n)*row 9(.|\n)*and ask again") as refused:
        answering.examples_of(captions, "what?")
    assert refused.value.exit_status == 1
    assert len(answering.examples_of(captions, "what?", rows=6)) == 6


@pytest.mark.parametrize("out", [lambda source: source, lambda source: source.parent])
def test_a_place_that_is_taken(out: Callable[[Path], Path], captions: Path) -> None:
    with pytest.raises(UsageError, match="--out"):
        answering._must_be_writable(out(captions), captions)
    link = captions.with_name("link.csv")
    link.symlink_to(captions)
    with pytest.raises(UsageError, match="overwrite"):
        answering._must_be_writable(link, captions)
