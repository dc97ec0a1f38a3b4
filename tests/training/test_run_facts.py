"""The facts of a run, from its log, its manifest and its data."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorgnette.config import LoraSettings
from lorgnette.io.atomic import write_json
from lorgnette.models.qwen2_vl.positions import compute_position_ids
from lorgnette.processing.encoded_rows import EncodedRows, TextRow
from lorgnette.report.manifest import build_manifest
from lorgnette.report.run_log import RunLog
from lorgnette.training.run_facts import (
    describe_comparison,
    format_duration,
    list_facts,
    list_machine,
    list_next_steps,
    sum_stages,
)
from lorgnette.training.run_report import write_run_report
from lorgnette.types import Example, Image, PredictionRow

STAGES = [("data", 1.0), ("features", 3.0), ("decoding", 2.5), ("steps", 60.0), ("steps", 64.0)]
RECORDS = [{"kind": "stage", "name": name, "seconds": seconds} for name, seconds in STAGES]
RECORDS += [{"kind": "memory", "peak_gib": 1.5, "gpu": None, "engine": "reference", "dtype": "float32"}]


def build_rows(run: Any, **values: Any) -> list[PredictionRow]:
    return [
        replace(
            PredictionRow("a", (encoded.example.images[0].path,), "", ("r",), "b", "t", generation="greedy"), **values
        )
        for encoded in run.data.held_out
    ]


def test_facts_have_units_and_names_but_no_folders(prepare_run: Callable[..., Any], tmp_path: Path) -> None:
    run = prepare_run("seed=7")
    manifest = build_manifest(seed=7, command=["lorgnette"])
    groups = dict(list_facts(run.settings, run.data, build_rows(run), RECORDS, manifest))
    facts = {label: value for group in groups.values() for label, value in group}
    assert facts["Total time"] == "2 min 8 s"  # of a resumed run both parts; decoding is a part of the features
    assert facts["Peak memory"] == "1.5 GiB of memory"
    assert dict(list_machine({}, {"peak_gib": 2, "num_ranks": 3}))["Peak memory"].endswith("the largest of 3 processes")
    assert facts["Engine"] == "reference float32"
    assert facts["Files"] == "captions.csv"
    assert facts["Rows"] == "4 trained on, 2 held out"
    assert facts["Prompt"] == run.data.most_common_prompt
    assert facts["Image size"] == "28×28 pixels"
    assert facts["Seed"] == "7"
    assert re.fullmatch(r"\d{1,2} [A-Z]\w+ \d{4}, \d\d:\d\d UTC", facts["Started"])
    assert all(name in facts["Versions"] for name in ("torch ", "transformers ", "peft ", "python "))
    assert " cores" in facts["CPU"]
    assert str(tmp_path) not in " ".join(value for label, value in facts.items() if label != "Base model")
    assert "Trained on" not in facts  # one process
    steps = [{"kind": "train", "step": 1}, *({"kind": "train", "step": n, "ranks": n} for n in (2, 2, 4))]
    (_, group), *_ = list_facts(run.settings, run.data, [], [*RECORDS, *steps], manifest)
    assert ("Trained on", "1, then 2, then 4 processes on the CPU") in group
    bare = list_facts(run.settings, run.data, [], [], {})  # the log and the manifest are gone
    assert "Total time" not in {label for _, group in bare for label, _ in group}


@pytest.mark.parametrize(
    ("rates", "text"),
    [({1: 5e-5, 2: 1e-4, 3: 2e-5}, "0.0001 at its peak"), ({}, "0.0001 at its peak"),
     ({5: 5e-5, 10: 9e-5}, "0.0001 at its peak"),  # the log lacks steps
     ({1: 2.5e-5, 2: 5e-5}, "5e-05 at its peak; train.learning_rate=0.0001 was not reached")],
)  # fmt: skip
def test_the_peak_of_the_learning_rate_is_the_one_reached(
    prepare_run: Callable[..., Any], rates: dict[int, float], text: str
) -> None:
    run = prepare_run("train.learning_rate=1e-4")
    records = [{"kind": "train", "step": step, "learning_rate": rate} for step, rate in rates.items()]
    facts = dict(dict(list_facts(run.settings, run.data, [], records, {}))["Run"])
    assert facts["Learning rate"] == text


def test_copies_of_images_are_counted_once(prepare_run: Callable[..., Any], tmp_path: Path) -> None:
    run = prepare_run()
    copies = [tmp_path / "copy-1.png", tmp_path / "copy-2.png"]
    for path in copies:
        path.write_bytes(b"the same")

    def show(example: Example, path: Path) -> TextRow:
        user, *others = example.turns
        parts = tuple(replace(part, path=path) if isinstance(part, Image) else part for part in user.parts)
        return TextRow(replace(example, turns=(replace(user, parts=parts), *others)), [], [], [], [])

    rows = map(show, run.data.held_out.conversations, copies)
    data = replace(run.data, held_out=EncodedRows.from_rows(rows, 0, compute_position_ids))
    asked = dict(describe_comparison(run.settings, data, build_rows(run), 12))["Asked about"]
    assert asked.startswith(
        "2 held-out rows with 1 image: from the end of captions.csv, with the copies of their images; none"
    )


def test_the_comparison_says_what_was_asked_about(prepare_run: Callable[..., Any]) -> None:
    run = prepare_run()
    compared = dict(describe_comparison(run.settings, run.data, build_rows(run), 12))
    assert compared["Before"].endswith(" without an adapter")
    assert compared["After"] == "the same model with this run's adapter, after 12 steps"
    assert compared["Asked about"] == (
        "2 held-out rows: from the end of captions.csv; none of their images is in the training part"
    )
    tail = run.settings.model_copy(update={"data": run.settings.data.model_copy(update={"split": "tail"})})
    assert (
        "may also be in the training part"
        in dict(describe_comparison(tail, run.data, build_rows(run), 12))["Asked about"]
    )
    one = build_rows(run)[:1]  # two captions of one image
    assert dict(describe_comparison(run.settings, run.data, one, 1))["Asked about"].startswith(
        "1 held-out prompt with 2 references"
    )
    other = build_rows(run, before="runs/first")
    assert dict(describe_comparison(run.settings, run.data, other, 1))["Before"].endswith(" with runs/first")
    assert describe_comparison(run.settings, run.data, [], 12) == ()


def test_next_steps_are_commands_that_lorgnette_knows(
    prepare_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import typer

    from lorgnette.cli import app

    monkeypatch.chdir(tmp_path)
    run = prepare_run()
    steps = list_next_steps(run.settings, run.run_dir, build_rows(run))
    known: Any = typer.main.get_command(app)
    names = [command.split()[1] for _, command in steps]
    assert names == ["predict", "serve", "compare", "evaluate", "verify", "merge"]
    for _, command in steps:
        words = command.split()
        known.commands[words[1]].make_context(words[1], words[2:])  # raises for an unknown or missing argument
        assert str(tmp_path) not in command
    assert steps[0][1] == "lorgnette predict black.png --adapter run --both"
    whole = run.settings.model_copy(update={"lora": LoraSettings(parts=("language", "vision"))})
    assert "lorgnette serve run" not in dict(list_next_steps(whole, run.run_dir, build_rows(run))).values()
    with pytest.raises(Exception, match="NEW"):
        known.commands["merge"].make_context("merge", ["one", "two", "NEW.csv"])


def test_a_page_names_no_folder_of_this_machine(
    prepare_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in settings nor in the lines about rows; also if the run was started elsewhere, by absolute paths."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    csv = tmp_path / "captions.csv"
    csv.write_text(csv.read_text() + "gone.png,it is gone\n")
    run = prepare_run("data.on_bad_row=skip", "predict.metrics=exact-match")
    RunLog(run.run_dir.log).close()
    write_json(run.run_dir.manifest, build_manifest(seed=0, command=[str(tmp_path)]))
    settings = run.settings.model_copy(update={"adapter": Path("/somebody/runs/old/adapter")})
    write_run_report(settings, run.run_dir, run.data, build_rows(run), [], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    assert "old/adapter" in page
    assert "somebody" not in page
    commands = page.partition('<ul class="commands">')[2].partition("</ul>")[0]
    assert str(tmp_path) in commands  # a command must work as it stands
    assert "captions.csv, row 8" in page
    assert str(tmp_path) not in page.replace(commands, "")


def test_stages_of_a_resumed_run_add_up() -> None:
    assert sum_stages([*RECORDS, {"kind": "train"}]) == {"data": 1.0, "features": 3.0, "decoding": 2.5, "steps": 124.0}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (9.96, "10.0 s"), (45.2, "45 s"), (59.9, "1 min 0 s"), (11520, "3 h 12 min")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
