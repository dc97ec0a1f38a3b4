"""`predict`: what it reads, and how answers are printed and written."""

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from rich.console import Console

from lorgnette import data
from lorgnette.commands import predict as predict_module
from lorgnette.commands.predict import predict, read_examples
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference import hf_generate
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import read_predictions
from lorgnette.types import Encoded, PredictionRow


def test_a_single_answer_is_printed_as_json() -> None:
    row = PredictionRow("a", (), "what?", (), base='it "is"\ntwo lines', tuned=None)
    name, _, text = predict_module._format_row(row, both=False).partition("\t")
    assert (name, json.loads(text)) == ("a", 'it "is"\ntwo lines')
    assert predict_module._format_row(row, both=True) == 'a\n  before: it "is"\ntwo lines\n  after:  None'


def test_cut_answers_are_marked_and_counted(captions: Path, tiny: Path) -> None:
    row = PredictionRow("a", (), "", (), base="one", tuned="two", base_is_cut=True)
    assert predict_module._format_row(row, both=True) == "a\n  before: one …\n  after:  two"
    said = io.StringIO()
    console = Console(file=said, width=200)
    rows = predict(captions, model=str(tiny), max_new_tokens=1, image_size="56", console=console)
    assert {row.base_is_cut for row in rows} == {True}
    assert "base model: 6 of 6 answers are cut at --max-new-tokens 1" in said.getvalue()
    assert "answers    image size 56×56 pixels; greedy; at most 1 tokens" in said.getvalue()


@pytest.mark.parametrize("name", ["questions.jsonl", "pictures.csv"])
def test_rows_without_an_answer_are_answered(name: str, shared, tmp_path: Path) -> None:
    rows = predict(shared("bugs/predict-unanswered") / name, model="demo", max_new_tokens=4)
    assert len(rows) == 6
    assert {row.references for row in rows} == {()}


def test_columns_and_unread_keys_are_said(captions: Path) -> None:
    """predict and evaluate read them as train does; keys that are not read were dropped without a word."""
    table, said = captions.with_name("Fotos.csv"), io.StringIO()
    table.write_text("Bild;Titel;Text;Lizenz\nred.png;R;rot;CC0\n")
    columns = data.ColumnChoice(caption="Titel")
    terminal = Terminal(Console(file=said, width=200))
    [example] = read_examples(table, "q", columns=columns, terminal=terminal)
    assert example.reference == "R"
    assert "columns    Fotos.csv: Bild → image, Titel → caption; separator semicolon" in said.getvalue()
    assert "key 'Text' is not read (1 row)" in said.getvalue()
    assert "key 'Lizenz' is not read (1 row)" in said.getvalue()
    with pytest.raises(UsageError, match="images without a table have no columns"):
        read_examples(captions.with_name("red.png"), "q", columns=columns)


def test_an_empty_prompt_is_used(captions: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt, used in ((None, "COCO Yes:"), ("", ""), ("What?", "What?")):
        rows = predict(captions.with_name("red.png"), model=str(tiny), prompt=prompt, max_new_tokens=1)
        assert [(row.prompt, row.references, row.tuned) for row in rows] == [(used, (), None)]
    assert capsys.readouterr().out.count("red.png\t") == 3


def test_answers_are_written_as_json_lines(captions: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.jsonl"
    rows = predict(captions, model=str(tiny), out=out, max_new_tokens=2, batch_size=4)
    assert read_predictions(out) == rows
    assert [row.references for row in rows][:2] == [("it is red",), ("it is green",)]


def test_a_signal_writes_the_answers_so_far(captions: Path, tiny: Path, tmp_path: Path, cli, monkeypatch) -> None:
    pad_batch = hf_generate._pad_batch

    def pad_until_the_fourth(prompts: list[Encoded], *more: Any) -> dict[str, Any]:
        if prompts[0].example.row == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return pad_batch(prompts, *more)

    monkeypatch.setattr(hf_generate, "_pad_batch", pad_until_the_fourth)
    options = ("--device", "cpu", "--max-new-tokens", 1, "--batch-size", 1, "--out", "answers.jsonl")
    done = cli("predict", captions, "--model", tiny, *options)
    assert done.status == 128 + signal.SIGTERM
    assert len(done.out.splitlines()) == 3
    assert len(read_predictions(tmp_path / "answers.jsonl")) == 3
    assert "only 3 of 6 questions are answered\nstopped\n" in done.err


def test_several_captions_of_an_image_get_one_answer(captions: Path, tiny: Path, capsys) -> None:
    captions.write_text("image_path,caption\nred.png,one\nblue.png,two\nred.png,three\n")
    rows = predict(captions, model=str(tiny), max_new_tokens=1)
    assert [(row.images[0].name, row.references) for row in rows] == [
        ("red.png", ("one", "three")),
        ("blue.png", ("two",)),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_images_from_another_folder(captions: Path, tiny: Path) -> None:
    (captions.parent / "moved").mkdir()
    captions.with_name("red.png").rename(captions.parent / "moved" / "red.png")
    captions.write_text("image_path,caption\nsomewhere/red.png,one\n")
    with pytest.raises(LorgnetteError, match="missing"):
        predict(captions, model=str(tiny))
    folder = str(captions.parent / "moved")
    assert len(predict(captions, model=str(tiny), images_from=folder, max_new_tokens=1)) == 1


def read_prompts(source: Path) -> list[EvalPrompt]:
    return group_by_prompt(read_examples(source, "p"))


def test_a_folder_with_captions_is_a_dataset(captions: Path) -> None:
    folder = captions.parent
    assert {prompt.references for prompt in read_prompts(folder)} == {()}  # captions.csv is not metadata.csv
    (folder / "metadata.csv").write_text("file_name,caption\nred.png,it is red\n")
    assert [prompt.references for prompt in read_prompts(folder)] == [("it is red",)]
    (folder / "metadata.csv").unlink()
    for image in folder.glob("*.png"):
        image.with_suffix(".txt").write_text(image.stem)
    assert {prompt.references for prompt in read_prompts(folder)} >= {("red",), ("blue",)}


def test_a_coco_file_is_a_dataset(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (40, 40)).save(tmp_path / "1.jpg")
    (tmp_path / "captions_val.json").write_text(
        '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": ['
        '{"id": 1, "image_id": 1, "caption": "a"}, {"id": 2, "image_id": 1, "caption": "b"}]}'
    )
    [prompt] = read_prompts(tmp_path / "captions_val.json")
    assert prompt.references == ("a", "b")


def test_all_broken_rows_are_named(captions: Path) -> None:
    with captions.open("a") as file:
        file.write("gone.png,a\nred.png,\n")
    with pytest.raises(LorgnetteError, match=r"2 of 8 rows(.|\n)*row 8(.|\n)*row 9(.|\n)*and try again") as raised:
        read_examples(captions, "what?")
    assert raised.value.exit_status == 1
    assert len(read_examples(captions, "what?", max_rows=6)) == 6
