"""What a person types, and what it means. ModelCache are read by none of this."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.commands.compare_candidates import list_training_prompts, resolve_candidates, split_before_after
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import ModelCache
from lorgnette.metrics.eval_prompts import group_by_prompt, read_examples
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow, write_predictions


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(chosen: Callable[..., Settings], run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run, made once."""
    monkeypatch.chdir(run_folder)
    if not (run_folder / "one").exists():
        train(chosen(f"run={run_folder / 'one'}", "data.prompt=What?"))
    return run_folder / "one"


def test_a_run_is_its_adapter_and_base_is_its_base(run: Path, tiny: Path, terminal: Terminal) -> None:
    base, by_run, by_adapter, model = resolve_candidates(["base", "one", "one/adapter", str(tiny)], None, terminal)
    assert by_run.spec is not None
    assert by_adapter.spec is not None
    assert by_run.spec.adapter == by_adapter.spec.adapter == Path("one/adapter")
    assert by_run.run is not None
    assert by_adapter.run is not None
    assert base.spec is not None
    assert (base.spec.adapter, base.spec.checkpoint.folder) == (None, tiny)
    assert base.spec.processor is by_run.spec.processor  # its resolution too
    assert base.weights_from is by_run.spec
    assert model.weights_from is None
    assert model.spec is not None
    assert model.spec.adapter is None
    assert (base.name, by_run.name, by_adapter.name) == ("base", "one", "one/adapter")
    assert list_training_prompts([base, by_run, by_run]) == ["What?"]
    assert by_run.training_settings["lora.rank"] == "2"
    assert base.training_settings == {}


def test_an_adapter_away_from_its_run_still_says_what_it_knows(run: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(run / "adapter", tmp_path / "alone")
    [alone] = resolve_candidates([str(tmp_path / "alone")], None, terminal)
    assert alone.run is None
    assert (alone.training_settings["lora.rank"], alone.training_settings["data.prompt"]) == ("2", "What?")
    assert alone.training_settings["image_size"] == "[28, 28]"


def test_the_base_alone_is_the_built_in_one(terminal: Terminal) -> None:
    [base] = resolve_candidates(["base"], None, terminal)
    assert base.spec is not None
    assert base.spec.base_model == "demo"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["one/gone"], "no adapter here"),
        (["/nowhere/adapter"], "no adapter here"),
        (["gone"], "nothing here has this name(.|\n)*a file of answers"),
        (["gone.jsonl"], "nothing here has this name"),
        (["one/config.yaml"], "a file, and not one of answers"),
        (["one", "one"], "the same one twice"),
    ],
)
def test_what_is_not_there(words: list[str], error: str, run: Path, terminal: Terminal) -> None:
    with pytest.raises(LorgnetteError, match=error):
        resolve_candidates(words, None, terminal)


def test_names_are_short_and_nobody_elses(run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        for name in ("first", "second"):
            path = run.parent / "a-long-folder-of-some-name" / place / name / "predictions.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, [])
    long = "a-long-folder-of-some-name"
    files = [f"{long}/a/first/predictions.jsonl", f"{long}/b/first/predictions.jsonl", "one/predictions.jsonl", "one"]
    assert [one.name for one in resolve_candidates(files, None, terminal)] == [
        "a/first", "b/first", "one/predictions.jsonl", "one",
    ]  # fmt: skip


def answers(path: Path, picture: Path, **said: str) -> Path:
    write_predictions(path, [PredictionRow("x", (picture,), "What?", (), **said)])
    return path


def test_a_file_answers_what_it_was_asked(captions: Path, tmp_path: Path, terminal: Terminal) -> None:
    asked = group_by_prompt(read_examples(captions, "What?", max_rows=1))
    path = answers(tmp_path / "a.jsonl", asked[0].image_paths[0], base="before", tuned="after")
    [side] = resolve_candidates([str(path)], None, terminal)
    weights = ModelCache("cpu")
    assert side.check_saved_answers(asked) == []
    assert side.answer(asked, SamplingParams(), terminal, weights) == ["after"]
    base, tuned = split_before_after(path)
    assert [one.answer(asked, SamplingParams(), terminal, weights) for one in (base, tuned)] == [["before"], ["after"]]
    for other in (
        group_by_prompt(read_examples(captions, "Where?", max_rows=1)),
        group_by_prompt(read_examples(captions, "What?", max_rows=2)),
    ):
        for ask in (side.check_saved_answers, lambda those: side.answer(those, SamplingParams(), terminal, weights)):
            with pytest.raises(LorgnetteError, match=rf"no answer to 1 of {len(other)}(.|\n)*lorgnette predict"):
                ask(other)


def test_a_file_whose_pictures_moved_is_told_of(captions: Path, tmp_path: Path, terminal: Terminal) -> None:
    asked = group_by_prompt(read_examples(captions, "What?", max_rows=1))
    [side] = resolve_candidates(
        [str(answers(tmp_path / "a.jsonl", Path("/gone") / asked[0].image_paths[0].name, tuned="yes"))], None, terminal
    )
    [note] = side.check_saved_answers(asked)
    assert "1 of 1 answers are found by their pictures' file names" in note


def test_a_lone_file_needs_both_halves(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare it with"):
        split_before_after(answers(tmp_path / "a.jsonl", tmp_path / "a.png", tuned="after"))


def test_a_damaged_config_is_named(run: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.yaml").write_text(json.dumps({"lora": {"rnk": 2}}))
    [side] = resolve_candidates([str(tmp_path / "damaged")], None, terminal)
    with pytest.raises(UsageError, match="unknown setting"):
        _ = side.training_settings
