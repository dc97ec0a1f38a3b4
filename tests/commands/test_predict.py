"""`predict`: what it reads, and how answers are printed and written."""

import gc
import io
import json
import os
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

from lorgnette import config, data
from lorgnette.commands import predict as predict_module
from lorgnette.commands.evaluate import evaluate
from lorgnette.commands.predict import Model, load, predict, read_examples, resolve_spec
from lorgnette.engine.loading import build_features, load_fast_model
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference import hf_generate, sampling
from lorgnette.inference.loading import LoadedModel, ModelSpec, build_metadata
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.processing.chat_template import ChatTemplate
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import read_predictions
from lorgnette.training.data_module import TrainingData
from lorgnette.types import Encoded, Example, PixelBox, Prediction, PredictionRow, Turn


def test_a_single_answer_is_printed_as_json() -> None:
    row = PredictionRow("a", (), "what?", (), base='it "is"\ntwo lines', tuned=None)
    name, _, text = predict_module._format_row(row, both=False).partition("\t")
    assert (name, json.loads(text)) == ("a", 'it "is"\ntwo lines')
    assert predict_module._format_row(row, both=True) == 'a\n  before: it "is"\\ntwo lines\n  after:  None'


def test_cut_answers_are_marked_and_counted(captions: Path, tiny: Path) -> None:
    row = PredictionRow("a", (), "", (), base="one", tuned="two", base_is_cut=True)
    assert predict_module._format_row(row, both=True) == "a\n  before: one …\n  after:  two"
    said = io.StringIO()
    console = Console(file=said, width=200)
    rows = predict(captions, model=str(tiny), max_new_tokens=1, image_size="56", console=console)
    assert {row.base_is_cut for row in rows} == {True}
    assert "base model: 6 of 6 answers are cut at --max-new-tokens 1" in said.getvalue()
    assert "answers    image size 56×56 pixels; greedy; at most 1 tokens" in said.getvalue()


def test_who_answers_is_said_and_several_images_are_taken(cli, captions: Path) -> None:
    images = [captions.with_name("red.png"), captions.with_name("green.png")]
    done = cli("predict", *images, "--model", "demo", "--max-new-tokens", 1, "--device", "cpu")
    assert [line.partition("\t")[0] for line in done.out.splitlines()] == ["red.png", "green.png"]
    assert "model      demo (the built-in model: drawn scenes only)" in done.err


def test_a_run_without_an_image_is_asked_for_one(cli, saved: Path) -> None:
    done = cli("predict", saved)
    assert done.status == 2
    assert "which image? · " in done.err
    assert f"lorgnette predict photo.jpg --adapter {saved}" in done.err.replace("\n", "")


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
    for prompt, used in ((None, data.DEFAULT_PROMPT), ("", ""), ("What?", "What?")):
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


@pytest.fixture
def model(tiny: Path, saved: Path, tmp_path: Path) -> Iterator[Model]:
    """The tiny model with its random adapter."""
    adapter = tmp_path / "adapter"
    shutil.copytree(saved, adapter)
    template = ChatTemplate.from_folder(tiny).source
    AdapterMetadata.load(saved).model_copy(update={"chat_template": template}).write(adapter)
    with load(adapter, device="cpu") as model:
        yield model


def test_a_model_answers_images_of_every_kind(model: Model, captions: Path) -> None:
    """The same pixels get the same answer, wherever they come from, and each item of a list has one."""
    red = PIL.Image.open(captions.with_name("red.png"))
    green = captions.with_name("green.png")
    [expected] = model.predict(captions.with_name("red.png"), max_new_tokens=3).texts
    for images in (red, np.asarray(red), str(captions.with_name("red.png"))):
        assert model.predict(images, max_new_tokens=3).texts == [expected]
    answers = model.predict([red, green, red, str(green)], max_new_tokens=3)
    assert answers.texts[0] == answers.texts[2] == expected
    assert answers.texts[1] == answers.texts[3]
    assert [len(row.images) for row in answers] == [1] * 4
    assert [row.prompt for row in model.predict([red, red], prompt=["one?", "two?"], max_new_tokens=1)] == [
        "one?",
        "two?",
    ]
    rows = [{"image": red, "question": "what?", "answer": "red"}, {"image": green, "caption": "green"}]
    assert [(row.prompt, row.references) for row in model.predict(rows[:1], max_new_tokens=1)] == [("what?", ("red",))]
    assert len(model.predict(captions, max_new_tokens=1)) == 6
    assert len(model.predict(captions.parent, max_new_tokens=1)) == 6


def test_a_model_answers_with_and_without_its_adapter(model: Model, captions: Path) -> None:
    [row] = model.predict(captions.with_name("red.png"), both=True, max_new_tokens=4)
    assert row.base is not None
    assert row.tuned is not None
    assert row.base != row.tuned
    assert row.answer == row.tuned
    assert "before" in model.predict([captions.with_name("red.png")], both=True, max_new_tokens=4)._repr_html_()


def load_fast(spec: ModelSpec) -> LoadedModel:
    """The same model in the fast engine, as on a GPU."""
    cpu, saved = torch.device("cpu"), SavedAdapter.load(spec.adapter) if spec.adapter else None
    features = build_features(spec.checkpoint, spec.processor.image_processor, cpu, torch.float32)
    return LoadedModel(load_fast_model(spec.checkpoint, saved, features, torch.float32), spec.processor)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_file_that_changes_is_read_again(engine: str, model: Model, tmp_path: Path) -> None:
    """A webcam writes one file again and again, in other sizes too. The fast engine keeps the features of images."""
    path, answers = tmp_path / "now.png", []
    rng = np.random.default_rng(0)
    kept = Model(model.spec, "cpu")
    if engine == "fast":
        kept._weights = load_fast(model.spec)
    for height in (56, 56, 112):
        PIL.Image.fromarray(rng.integers(0, 255, (height, 56, 3), np.uint8)).save(path)
        processor = replace(model.spec.processor)  # as in another process
        fresh = Model(replace(model.spec, processor=processor), "cpu").predict(path, max_new_tokens=6).texts
        assert kept.predict(path, max_new_tokens=6).texts == fresh
        answers += fresh
    assert len(set(answers)) > 1


def test_images_in_memory_are_kept_as_long_as_their_answers(model: Model) -> None:
    answers = model.predict(PIL.Image.new("RGB", (56, 56)), max_new_tokens=1)
    [path] = answers[0].images
    assert "data:image" in answers._repr_html_()
    del answers
    gc.collect()
    assert not path.exists()


def test_a_closed_model_answers_no_more(tiny: Path, captions: Path) -> None:
    model = load(str(tiny), device="cpu")
    weights = weakref.ref(model.weights.model)
    with pytest.raises(UsageError, match="it has no adapter · both=True"):
        model.predict(captions, both=True)
    assert "closed" not in repr(model)
    model.close()
    assert weights() is None  # its memory is free
    with pytest.raises(LorgnetteError, match="the model is closed"):
        model.predict(captions)
    assert repr(model).endswith("closed>")


@pytest.mark.parametrize(
    ("data", "prompt", "message"),
    [
        ([], None, "no images"),
        (3, None, "no images · a int · give a path"),
        (None, None, "no images · a NoneType"),
        (b"x", None, "no images · a bytes"),
        (iter([]), None, "no images · an empty list"),
        (np.zeros((8, 8, 3)), None, "its dtype is float64 · give uint8"),
        ("https://x.org/a.png", None, "a URL, not a file: .* · download the image"),
        (["red.png", "https://x.org/a.png"], None, "a URL, not a file"),
        (["red.png", "gone.png"], None, "gone.png"),
        (["red.png"], ["a", "b"], "2 prompts for 1 images"),
        ("red.png", ["a"], "several prompts"),
        ([{"image": "red.png", "caption": "a"}], ["a"], "several prompts"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    data: Any, prompt: Any, message: str, captions: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(captions.parent)
    model = Model(resolve_spec(str(tiny), None, Terminal()), "cpu")  # no weights are read
    with pytest.raises(LorgnetteError, match=message):
        model.predict(data, prompt=prompt)
    assert model._weights is None


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """Two photos of 400×800 and 500×100 pixels, with a box in pixels each."""
    rows = []
    for number, (size, box) in enumerate([((400, 800), [40, 200, 200, 600]), ((500, 100), [100, 10, 400, 90])]):
        PIL.Image.new("RGB", size).save(tmp_path / f"{number}.png")
        messages = [
            {"role": "user", "content": "<image>Find all."},
            {"role": "assistant", "content": "<ref-object><bbox>"},
        ]
        objects = {"ref": ["cat"], "bbox": [box]}
        rows.append(json.dumps({"messages": messages, "images": [f"{number}.png"], "objects": objects}))
    (tmp_path / "boxed.jsonl").write_text("\n".join(rows))
    return tmp_path / "boxed.jsonl"


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_boxes_come_back_in_pixels_of_the_file(
    model_type: str, tiny_family: Callable[[str], Path], boxed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The model writes the right box of each image in its own convention, and a wrong one that it is less sure of."""
    build = sampling.build_prediction

    def answer(processor: Processor, example: Example, _ids: Any, adapter: Any, probabilities: Any) -> Prediction:
        wrong = replace(example.reference_boxes[0], corners=(0, 0, 20, 20))
        shown = replace(example, turns=(example.turns[0], Turn("assistant", (wrong, *example.reference_boxes))))
        ids = processor.encode(shown).input_ids[len(processor.encode(example, add_generation_prompt=True).input_ids) :]
        ids = ids.tolist()
        half = len(ids) // 2
        known = None if probabilities is None else [0.25] * half + [0.75] * (len(ids) - half)
        return build(processor, example, ids, adapter, known)

    monkeypatch.setattr(hf_generate, "build_prediction", answer)
    folder, out = str(tiny_family(model_type)), tmp_path / "answers.jsonl"
    rows = predict(boxed, model=folder, image_size="280", max_new_tokens=1, device="cpu", out=out)
    for row, exact in zip(rows, [(40, 200, 200, 600), (100, 10, 400, 90)], strict=True):
        wrong, right = row.base_boxes
        with PIL.Image.open(row.images[0]) as image:
            half_a_step = [side / (1000 if model_type != "qwen2_5_vl" else 280) / 2 for side in image.size] * 2
        for found, true, tolerance in zip(right.corners, exact, half_a_step, strict=True):
            assert abs(found - true) <= tolerance + 0.005  # hundredths are kept
        assert wrong.score < right.score
        assert row.reference_boxes == ((PixelBox(tuple(map(float, exact)), "cat"),),)
    assert "\t[{" in capsys.readouterr().out
    assert read_predictions(out) == list(rows)
    # Scored at once, and from the file, the values are the same.
    options = {"metrics": "auto", "device": "cpu", "console": Console(file=io.StringIO())}
    at_once = evaluate(folder, boxed, image_size="280", max_new_tokens=1, **options)
    from_file = evaluate(out, boxed, **options)
    assert at_once.scores == from_file.scores
    scores = {score.name: score for score in at_once.scores[0]}
    assert scores["box-AP50"].value == pytest.approx(1)
    assert scores["box-AP50"].note == "a box's score is the mean probability of its tokens"
    assert scores["box-IoU"].value == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("metrics", "has_boxes"), [("auto", True), ("box-IoU", True), ("caption", False)])
def test_boxes_are_expected_where_the_adapter_or_the_data_has_some(
    metrics: str, has_boxes: bool, tiny: Path, boxed: Path, captions: Path, terminal_output: io.StringIO
) -> None:
    overrides = [f"data={boxed}", f"model={tiny}", f"predict.metrics={metrics}", "image_size=[56,56]"]
    settings, terminal = config.load_settings(None, overrides), Terminal(Console(file=terminal_output))
    data_of_run = TrainingData.load(settings, terminal)
    settings = data_of_run.choose_metrics(settings, terminal)
    spec = ModelSpec.from_names(str(tiny), None, terminal)
    metadata = build_metadata(settings, spec.checkpoint, spec.processor)
    assert metadata.predict_boxes == has_boxes
    model = Model(replace(spec, metadata=metadata))

    def is_expected(source: Path) -> bool:
        return model.expect_boxes(SamplingParams(), model.read_questions(source, None, None)).with_boxes

    assert is_expected(boxed)
    assert is_expected(captions) == has_boxes
