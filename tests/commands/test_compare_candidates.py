"""What a user types, and the candidate it stands for. No weights are read."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lorgnette.commands.answer_settings import select_max_new_tokens
from lorgnette.commands.compare_candidates import list_training_prompts, resolve_candidates, split_before_after
from lorgnette.commands.predict import predict, read_examples
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelCache
from lorgnette.inference.sampling import SamplingParams
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import read_predictions, write_predictions
from lorgnette.types import PredictionRow


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(make_settings: Callable[..., Settings], run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, trained once."""
    monkeypatch.chdir(run_folder)
    if not (run_folder / "one").exists():
        train(make_settings(f"run={run_folder / 'one'}", "data.prompt=What?", "predict.image_size=native"))
    return run_folder / "one"


def test_a_run_stands_for_its_adapter_and_base_for_its_base_model(run: Path, tiny: Path, terminal: Terminal) -> None:
    base, by_run, by_adapter, model = resolve_candidates(["base", "one", "one/adapter", str(tiny)], None, terminal)
    assert by_run.spec is not None
    assert by_adapter.spec is not None
    assert by_run.spec.adapter == by_adapter.spec.adapter == Path("one/adapter")
    assert by_run.run is not None
    assert by_adapter.run is not None
    assert base.spec is not None
    assert (base.spec.adapter, base.spec.checkpoint.folder) == (None, tiny)
    assert base.spec.processor is by_run.spec.processor  # same image size
    assert base.weights_from is by_run.spec
    assert model.weights_from is None
    assert model.spec is not None
    assert model.spec.adapter is None
    assert (base.name, by_run.name, by_adapter.name) == ("base", "one", "one/adapter")
    assert list_training_prompts([base, by_run, by_run]) == ["What?"]
    assert by_run.training_settings["lora.rank"] == "2"
    assert base.training_settings == {}


def test_a_run_is_asked_as_its_own_report_was(run: Path, captions: Path, terminal: Terminal) -> None:
    """predict.image_size=native and predict.max_new_tokens=2 are the default of predict, evaluate and compare."""
    rows = read_predictions(run / "predictions.jsonl")
    base, one = resolve_candidates(["base", "one"], None, terminal)
    sampling = SamplingParams(select_max_new_tokens(None, [base.spec, one.spec]))
    assert {row.generation for row in rows} == {one.describe_generation(sampling), base.describe_generation(sampling)}
    assert "image size native" in rows[0].generation
    prompts = [EvalPrompt(example, ()) for example in read_examples(captions, "What?")[-2:]]
    answers = one.answer(prompts, sampling, terminal, ModelCache("cpu"))
    assert [(answer.text, not answer.is_complete) for answer in answers] == [(r.tuned, r.tuned_is_cut) for r in rows]
    predicted = predict(captions, adapter=run, console=Console(file=io.StringIO()))
    assert [row.tuned for row in predicted[-2:]] == [row.tuned for row in rows]
    assert predicted[-1].generation == rows[-1].generation
    [small] = resolve_candidates(["one"], None, terminal, "28")
    assert small.describe_generation(sampling) == "image size 28×28 pixels; greedy; at most 2 tokens"


def test_an_image_size_without_a_model_to_ask_is_refused(run: Path, terminal: Terminal) -> None:
    with pytest.raises(UsageError, match=r"saved answers have an image size already · --image-size native"):
        resolve_candidates(["one/predictions.jsonl"], None, terminal, "native")


def test_what_a_run_was_trained_on_is_found_from_each_of_its_names(run: Path, terminal: Terminal) -> None:
    """From its folder, its adapter, a checkpoint, its answers; of an adapter elsewhere it is not known."""
    shutil.copytree("one/adapter", "alone", dirs_exist_ok=True)
    [checkpoint] = (run / "checkpoints").iterdir()
    names = ["base", "one", "one/adapter", f"one/checkpoints/{checkpoint.name}", "one/predictions.jsonl", "alone"]
    rows = read_predictions(run / "predictions.jsonl")
    prompts = group_by_prompt(read_examples(rows[0].images[0].parent, "What?"))
    summaries = [c.find_training_overlap(prompts).summary for c in resolve_candidates(names, None, terminal)]
    assert summaries == ["–", *["4 of 6 questions"] * 4, "unknown"]


def test_an_adapter_without_its_run_has_settings_of_its_own(run: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(run / "adapter", tmp_path / "alone")
    [alone] = resolve_candidates([str(tmp_path / "alone")], None, terminal)
    assert alone.run is None
    assert (alone.training_settings["lora.rank"], alone.training_settings["data.prompt"]) == ("2", "What?")
    assert alone.training_settings["image_size"] == "[28, 28]"


def test_base_without_adapters_is_the_model_that_train_takes(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr("lorgnette.inference.loading.resolve_model", lambda name, terminal: tiny)
    terminal = Terminal(Console(file=(printed := io.StringIO()), width=200))
    [base] = resolve_candidates(["base"], None, terminal)
    assert base.spec is not None
    assert base.spec.base_model == Settings().model
    assert not base.is_tuned
    assert "model      base: Qwen/Qwen2-VL-2B-Instruct" in printed.getvalue()
    resolve_candidates(["base"], "demo", terminal)
    assert "model      base: demo (the built-in model: drawn scenes only)" in printed.getvalue()


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["one/gone"], "no such adapter"),
        (["/nowhere/adapter"], "no such adapter"),
        (["gone"], "no such run, model or file(.|\n)*a file of answers"),
        (["gone.jsonl"], "no such run, model or file"),
        (["one/config.yaml"], "not a file of answers"),
        (["one", "one"], "a candidate is named twice"),
    ],
)
def test_unknown_names_are_errors(names: list[str], error: str, run: Path, terminal: Terminal) -> None:
    with pytest.raises(LorgnetteError, match=error):
        resolve_candidates(names, None, terminal)


def test_names_are_short_and_unique(run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        for name in ("first", "second"):
            path = run.parent / "a-long-folder-of-some-name" / folder / name / "predictions.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, [])
    long = "a-long-folder-of-some-name"
    files = [f"{long}/a/first/predictions.jsonl", f"{long}/b/first/predictions.jsonl", "one/predictions.jsonl", "one"]
    assert [candidate.name for candidate in resolve_candidates(files, None, terminal)] == [
        "a/first", "b/first", "one/predictions.jsonl", "one",
    ]  # fmt: skip


def write_answers(path: Path, image: Path, **answers: str) -> Path:
    write_predictions(path, [PredictionRow("x", (image,), "What?", (), **answers)])
    return path


def test_a_file_answers_its_own_prompts(captions: Path, tmp_path: Path, terminal: Terminal) -> None:
    prompts = group_by_prompt(read_examples(captions, "What?", max_rows=1))
    path = write_answers(tmp_path / "a.jsonl", prompts[0].image_paths[0], base="before", tuned="after")
    [candidate] = resolve_candidates([str(path)], None, terminal)
    model_cache = ModelCache("cpu")
    assert candidate.check_saved_answers(prompts) == []
    assert [answer.text for answer in candidate.answer(prompts, SamplingParams(), terminal, model_cache)] == ["after"]
    base, tuned = split_before_after(path)
    answers = [half.answer(prompts, SamplingParams(), terminal, model_cache) for half in (base, tuned)]
    assert [answer.text for [answer] in answers] == ["before", "after"]
    assert (base.name, base.is_tuned, tuned.is_tuned) == ("base", False, True)
    continued = write_answers(
        tmp_path / "b.jsonl", prompts[0].image_paths[0], base="old", tuned="new", before="runs/old, step 9"
    )
    old, _ = split_before_after(continued)
    assert (old.name, old.is_tuned) == ("runs/old, step 9", True)  # not the base model
    for other in (
        group_by_prompt(read_examples(captions, "Where?", max_rows=1)),
        group_by_prompt(read_examples(captions, "What?", max_rows=2)),
    ):
        for ask in (
            candidate.check_saved_answers,
            lambda other: candidate.answer(other, SamplingParams(), terminal, model_cache),
        ):
            with pytest.raises(LorgnetteError, match=rf"no answer to 1 of {len(other)}(.|\n)*lorgnette predict"):
                ask(other)


def test_moved_images_are_noted(captions: Path, tmp_path: Path, terminal: Terminal) -> None:
    prompts = group_by_prompt(read_examples(captions, "What?", max_rows=1))
    [candidate] = resolve_candidates(
        [str(write_answers(tmp_path / "a.jsonl", Path("/gone") / prompts[0].image_paths[0].name, tuned="yes"))],
        None,
        terminal,
    )
    [note] = candidate.check_saved_answers(prompts)
    assert "1 of 1 answers are matched by image file name" in note


def test_a_single_file_needs_both_answers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare with"):
        split_before_after(write_answers(tmp_path / "a.jsonl", tmp_path / "a.png", tuned="after"))


def test_an_invalid_config_is_named(run: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.yaml").write_text(json.dumps({"lora": {"rnk": 2}}))
    [candidate] = resolve_candidates([str(tmp_path / "damaged")], None, terminal)
    with pytest.raises(UsageError, match="unknown setting"):
        _ = candidate.training_settings
