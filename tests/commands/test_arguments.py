"""The arguments that the commands share in Python: data and settings."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorgnette.commands.arguments import as_name, as_source, build_settings, is_rows, require_data
from lorgnette.commands.check import check
from lorgnette.commands.compare import compare
from lorgnette.commands.evaluate import evaluate
from lorgnette.commands.plan import plan
from lorgnette.commands.predict import load
from lorgnette.commands.preview import preview
from lorgnette.commands.train import resume
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.report.console import Terminal


def test_paths_are_given_as_text_or_path() -> None:
    values = {"model": Path("m"), "images_from": Path("i"), "run": "r", "test": [Path("a.csv"), "b.csv"]}
    settings = build_settings(Path("c.csv"), values=values)
    assert (settings.model, settings.data.images_from, settings.run) == ("m", "i", Path("r"))
    assert (settings.data.path, settings.data.test) == (Path("c.csv"), Path("a.csv,b.csv"))


@pytest.mark.parametrize("name", ["test", "data.test"])
def test_held_out_rows_in_memory_are_refused(name: str) -> None:
    """They would become the name of a file."""
    with pytest.raises(UsageError, match=r"rows in memory, not a data file .* lorgnette\.write_rows"):
        build_settings("a.csv", values={name: [{"image": "a.png", "caption": "b"}]})
    with pytest.raises(UsageError, match="rows in memory"):
        build_settings("a.csv", settings={"data": {"test": [{}]}})


@pytest.mark.parametrize("function", [check, plan, preview, partial(evaluate, "demo"), partial(compare, "demo")])
def test_only_train_and_predict_take_rows(function: Any) -> None:
    with pytest.raises(UsageError, match=r"rows in memory, not a data file .* lorgnette\.write_rows"):
        function([{"image": "a.png", "caption": "b"}])
    with pytest.raises(UsageError, match=r"rows in memory, not a data file .* lorgnette\.write_rows"):
        compare("demo", data=[{"image": "a.png", "caption": "b"}])


@pytest.mark.parametrize("function", [as_name, load, resume, partial(evaluate, data="a"), partial(compare, data="a")])
@pytest.mark.parametrize("name", [None, 3, b"x"])
def test_what_is_no_name_is_refused(function: Any, name: Any) -> None:
    with pytest.raises(UsageError, match="no name of a run or a model"):
        function(name)


def test_other_values_of_a_wrong_type() -> None:
    with pytest.raises(UsageError, match="no settings · settings is a list · give a dict"):
        build_settings("a.csv", settings=["x"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such GPU · gpu=K80 · give one of RTX 3070, "):
        plan("a.csv", gpu="K80")  # type: ignore[arg-type]


def test_settings_stay_as_they_are_without_others() -> None:
    settings = Settings(model="demo")
    assert build_settings(settings) is settings
    assert build_settings(settings=settings) is settings
    changed = build_settings(settings=settings, values={"seed": 3})
    assert changed == Settings(model="demo", seed=3)
    assert changed.model_fields_set == {"model", "seed"}  # an adapter decides what is not set


def test_words_of_other_trainers_are_said(terminal: Terminal, terminal_output: Any) -> None:
    settings = build_settings(values={"num_train_epochs": 3}, terminal=terminal)
    assert settings.train.epochs == 3
    assert "num_train_epochs=3 → train.epochs" in terminal_output.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [("a.csv", False), (Path("a"), False), (["a.csv", Path("b")], False), ([{}], True), ([], True), (None, False)],
)
def test_what_is_rows(data: Any, expected: bool) -> None:
    assert is_rows(data) is expected


def test_a_data_file_is_needed() -> None:
    assert as_source(["a.csv", "b.csv"]) == Path("a.csv,b.csv")
    with pytest.raises(UsageError, match="no data"):
        require_data(Settings())
