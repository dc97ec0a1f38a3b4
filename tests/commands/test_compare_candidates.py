"""What a person types, and what it means. Weights are read by none of this."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.commands.compare_candidates import contenders, halves, prompts_of
from lorgnette.commands.train import train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Weights
from lorgnette.metrics.eval_prompts import examples_of, questions
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
    base, by_run, by_adapter, model = contenders(["base", "one", "one/adapter", str(tiny)], None, terminal)
    assert by_run.asked is not None
    assert by_adapter.asked is not None
    assert by_run.asked.adapter == by_adapter.asked.adapter == Path("one/adapter")
    assert by_run.run is not None
    assert by_adapter.run is not None
    assert base.asked is not None
    assert (base.asked.adapter, base.asked.checkpoint.folder) == (None, tiny)
    assert base.asked.encoder is by_run.asked.encoder  # its resolution too
    assert base.inside is by_run.asked
    assert model.inside is None
    assert model.asked is not None
    assert model.asked.adapter is None
    assert (base.name, by_run.name, by_adapter.name) == ("base", "one", "one/adapter")
    assert prompts_of([base, by_run, by_run]) == ["What?"]
    assert by_run.settings["lora.rank"] == "2"
    assert base.settings == {}


def test_an_adapter_away_from_its_run_still_says_what_it_knows(run: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(run / "adapter", tmp_path / "alone")
    [alone] = contenders([str(tmp_path / "alone")], None, terminal)
    assert alone.run is None
    assert (alone.settings["lora.rank"], alone.settings["data.prompt"]) == ("2", "What?")
    assert alone.settings["encode.size"] == "[28, 28]"


def test_the_base_alone_is_the_built_in_one(terminal: Terminal) -> None:
    [base] = contenders(["base"], None, terminal)
    assert base.asked is not None
    assert base.asked.base == "demo"


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
        contenders(words, None, terminal)


def test_names_are_short_and_nobody_elses(run: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        for name in ("first", "second"):
            path = run.parent / "a-long-folder-of-some-name" / place / name / "predictions.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_predictions(path, [])
    long = "a-long-folder-of-some-name"
    files = [f"{long}/a/first/predictions.jsonl", f"{long}/b/first/predictions.jsonl", "one/predictions.jsonl", "one"]
    assert [one.name for one in contenders(files, None, terminal)] == [
        "a/first", "b/first", "one/predictions.jsonl", "one",
    ]  # fmt: skip


def answers(path: Path, picture: Path, **said: str) -> Path:
    write_predictions(path, [PredictionRow("x", (picture,), "What?", (), **said)])
    return path


def test_a_file_answers_what_it_was_asked(captions: Path, tmp_path: Path, terminal: Terminal) -> None:
    asked = questions(examples_of(captions, "What?", rows=1))
    path = answers(tmp_path / "a.jsonl", asked[0].pictures[0], base="before", tuned="after")
    [side] = contenders([str(path)], None, terminal)
    weights = Weights("cpu")
    assert side.looked_over(asked) == []
    assert side.answers(asked, Sampling(), terminal, weights) == ["after"]
    base, tuned = halves(path)
    assert [one.answers(asked, Sampling(), terminal, weights) for one in (base, tuned)] == [["before"], ["after"]]
    for other in (
        questions(examples_of(captions, "Where?", rows=1)),
        questions(examples_of(captions, "What?", rows=2)),
    ):
        for ask in (side.looked_over, lambda those: side.answers(those, Sampling(), terminal, weights)):
            with pytest.raises(LorgnetteError, match=rf"no answer to 1 of {len(other)}(.|\n)*lorgnette predict"):
                ask(other)


def test_a_file_whose_pictures_moved_is_told_of(captions: Path, tmp_path: Path, terminal: Terminal) -> None:
    asked = questions(examples_of(captions, "What?", rows=1))
    [side] = contenders(
        [str(answers(tmp_path / "a.jsonl", Path("/gone") / asked[0].pictures[0].name, tuned="yes"))], None, terminal
    )
    [note] = side.looked_over(asked)
    assert "1 of 1 answers are found by their pictures' file names" in note


def test_a_lone_file_needs_both_halves(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare it with"):
        halves(answers(tmp_path / "a.jsonl", tmp_path / "a.png", tuned="after"))


def test_a_damaged_config_is_named(run: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.yaml").write_text(json.dumps({"lora": {"rnk": 2}}))
    [side] = contenders([str(tmp_path / "damaged")], None, terminal)
    with pytest.raises(UsageError, match="unknown setting"):
        _ = side.settings
