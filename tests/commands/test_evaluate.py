"""`evaluate`: the table, the files, and errors before weights are read."""

import json
from pathlib import Path

import pytest

from lorgnette.commands.evaluate import PREDICTIONS_FILE, SCORES_FILE, evaluate
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics.registry import CAPTION_METRICS
from lorgnette.report.predictions import read_predictions


def test_predictions_and_scores_are_written(captions: Path, tiny: Path, tmp_path: Path, capsys) -> None:
    captions.write_text("image_path,caption\nred.png,a\nblue.png,b\nred.png,c\n")
    report = evaluate("base", captions, model=str(tiny), out=tmp_path / "scored", max_new_tokens=4)
    rows = read_predictions(tmp_path / "scored" / PREDICTIONS_FILE)
    assert [(row.references, row.tuned) for row in rows] == [(("a", "c"), None), (("b",), None)]
    scores = json.loads((tmp_path / "scored" / SCORES_FILE).read_text())
    assert list(scores["metrics"]) == list(CAPTION_METRICS)
    assert scores["metrics"]["BLEU-1"]["value"] == report.scores[0][0].value
    assert len(scores["metrics"]["ROUGE-L"]["per_example"]) == 2
    assert scores["scored"] == [0, 1]
    assert {name: style["num_texts"] for name, style in scores["style"].items()} == {"answers": 2, "references": 3}
    assert scores["style"]["references"]["mean_words"] == report.reference_style.mean_words
    out = capsys.readouterr().out
    assert "BLEU-1 " in out
    assert "references" in out


def test_a_file_of_answers_is_scored_without_a_model(captions: Path, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    first = evaluate("base", captions, model=str(tiny), out=tmp_path / "scored", max_new_tokens=4, metrics="ANLS")
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    second = evaluate(tmp_path / "scored" / PREDICTIONS_FILE, captions, metrics="ANLS", prompt="COCO Yes:")
    assert second.scores == first.scores


def test_a_single_example_has_a_note_instead_of_cider(captions: Path, tiny: Path, capsys) -> None:
    evaluate("base", captions, model=str(tiny), rows=1, max_new_tokens=1)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CIDEr-D")]
    assert "–" in line
    assert "(" in line


def test_errors_come_before_weights_are_read(captions: Path, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match="no such metric"):
        evaluate("base", captions, model=str(tiny), metrics="BLUE")
    with pytest.raises(LorgnetteError, match="no references to compare with"):
        evaluate("base", captions.with_name("red.png"), model=str(tiny))
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / SCORES_FILE).touch()
    for out, error in ((tmp_path / "scored", "scores.json exists already"), (captions, "a file, not a folder")):
        with pytest.raises(UsageError, match=error):
            evaluate("base", captions, model=str(tiny), out=out)
