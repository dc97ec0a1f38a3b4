"""`evaluate`: the table, the files, and errors before weights are read."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorgnette.commands.compare_candidates import Candidate
from lorgnette.commands.evaluate import PREDICTIONS_FILE, SCORES_FILE, evaluate, load_eval_prompts
from lorgnette.commands.predict import predict
from lorgnette.config import BOX_PROMPT, Settings
from lorgnette.data import DEFAULT_PROMPT
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec, build_metadata
from lorgnette.io.atomic import write_json
from lorgnette.metrics.registry import CAPTION_METRICS
from lorgnette.report.manifest import build_manifest, hash_image
from lorgnette.report.predictions import read_predictions, write_predictions
from lorgnette.types import Prediction
from lorgnette.verification.judgement import judge_adapter


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
    second = evaluate(tmp_path / "scored" / PREDICTIONS_FILE, captions, metrics="ANLS", prompt=DEFAULT_PROMPT)
    assert second.scores == first.scores


@pytest.mark.parametrize(("prompt", "asked"), [(None, "Where?"), ("What?", "What?")])
def test_a_file_of_boxes_is_asked_the_adapters_question(
    captions: Path, tiny: Path, terminal: Any, prompt: str | None, asked: str
) -> None:
    """COCO's has none of its own."""
    path = captions.with_name("instances.json")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    value = {
        "images": [{"id": 1, "file_name": "red.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [box],
    }
    path.write_text(json.dumps(value))
    spec = ModelSpec.from_names(str(tiny), None, terminal)
    own = build_metadata(Settings(), spec.checkpoint, spec.processor).model_copy(update={"prompt": "Where?"})
    for metadata, question in ((own, asked), (None, prompt or BOX_PROMPT)):
        candidates = [Candidate("x", spec=replace(spec, metadata=metadata))]
        [found] = load_eval_prompts(candidates, path, prompt=prompt, rows=None, images_from=None, needs_answer=True)
        assert found.text == question


def test_what_was_trained_on_is_said_in_table_and_json(captions: Path, tmp_path: Path, capsys) -> None:
    """The answers of a run's folder; its manifest knows the images. Here it was trained on the first two."""
    prompts = load_eval_prompts([], captions, prompt="p", rows=None, images_from=None, needs_answer=True)
    hashes = {str(prompt.image_paths[0]): hash_image(prompt.image_paths[0]) for prompt in prompts}
    write_json(
        tmp_path / "manifest.json", build_manifest(seed=0, command=[], image_hashes=hashes, num_training_images=2)
    )
    (tmp_path / "config.yaml").touch()
    rows = [prompt.build_row(tuned=Prediction(prompt.example, "it is red"), generation="greedy") for prompt in prompts]
    write_predictions(tmp_path / "predictions.jsonl", rows)

    def run(out: str) -> dict[str, Any]:
        said = io.StringIO()
        evaluate(tmp_path / "predictions.jsonl", captions, prompt="p", metrics="ANLS", out=tmp_path / out,
                 console=Console(file=said, width=400))  # fmt: skip
        return json.loads((tmp_path / out / SCORES_FILE).read_text()) | {"said": said.getvalue()}

    scores = run("known")
    assert (scores["trained_on"], scores["generation"]) == ([0, 1], "greedy")
    assert "trained on           2 of 6 questions\n" in capsys.readouterr().out
    assert (
        "was trained on the images of 2 of 6 questions: on these its scores, intervals and p-values" in scores["said"]
    )
    assert read_predictions(tmp_path / "known" / PREDICTIONS_FILE)[0].generation == "greedy"
    (tmp_path / "manifest.json").unlink()
    scores = run("unknown")
    assert scores["trained_on"] is None
    assert "trained on           unknown\n" in capsys.readouterr().out
    assert "may have been trained on some of these questions" in scores["said"]


@pytest.mark.parametrize(
    ("references", "answers", "name", "table"),
    [
        (["warm", "cold"] * 3, ["warm", "Cold.", "cold", "it is cold", "warm", "cold"], "accuracy", "labels"),
        ([f'{{"n": {i}}}' for i in range(6)], [f'{{"n": {i % 4}}}' for i in range(6)], "json-field-accuracy", "fields"),
    ],
)
def test_labels_and_json_get_their_metrics_by_themselves(
    references: list[str], answers: list[str], name: str, table: str, captions: Path, tmp_path: Path, capsys: Any
) -> None:
    """Said, counted in the table and in scores.json; `--metrics` takes others."""
    prompts = load_eval_prompts([], captions, prompt="p", rows=None, images_from=None, needs_answer=True)
    with captions.open("w", newline="") as file:
        names = [prompt.image_paths[0].name for prompt in prompts]
        csv.writer(file).writerows([("image_path", "caption"), *zip(names, references, strict=True)])
    pairs = zip(prompts, answers, strict=True)
    rows = [prompt.build_row(tuned=Prediction(prompt.example, text)) for prompt, text in pairs]
    write_predictions(tmp_path / "predictions.jsonl", rows)
    said = io.StringIO()
    evaluate(tmp_path / "predictions.jsonl", captions, prompt="p", out=tmp_path / "out", console=Console(file=said))
    scores = json.loads((tmp_path / "out" / SCORES_FILE).read_text())
    assert next(iter(scores["metrics"])) == name
    assert scores["metrics"][name]["value"] == pytest.approx(4 / 6)
    assert scores[table][table]
    assert f"metrics    {name}, " in said.getvalue()
    evaluate(tmp_path / "predictions.jsonl", captions, prompt="p", metrics="ANLS", out=tmp_path / "named")
    assert list(json.loads((tmp_path / "named" / SCORES_FILE).read_text())["metrics"]) == ["ANLS"]
    assert "because" not in capsys.readouterr().out


def test_relative_images_in_an_answers_file(shared, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared("bugs/answers-relative")
    for current, prefix in ((folder, ""), (folder.parent, "answers-relative/")):
        monkeypatch.chdir(current)
        report = evaluate(f"{prefix}answers.jsonl", f"{prefix}data.jsonl", metrics="exact-match")
        assert report.scores[0][0].value == 1.0


def test_an_adapter_is_judged_as_by_predict(
    saved: Path, tiny: Path, captions: Path, tmp_path: Path, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken one is refused in the same words, before weights are read; verify and merge use the same judgement."""
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    adapter = Path(shutil.copytree(saved, tmp_path / "broken"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": config["r"] + 1}))
    with pytest.raises(LorgnetteError) as by_evaluate:
        evaluate(adapter, captions, model=str(tiny))
    with pytest.raises(LorgnetteError) as by_predict:
        predict(captions, adapter=adapter, model=str(tiny))
    assert str(by_evaluate.value) == str(by_predict.value)
    failures = judge_adapter(str(tiny), adapter, terminal).failures
    assert by_predict.value.message == "; ".join(failure.message for failure in failures)


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
