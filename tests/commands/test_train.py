"""A run that fails before its first step leaves nothing; one that has started stays."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from lorgnette import config
from lorgnette.commands import train as train_module
from lorgnette.commands.train import resume, train
from lorgnette.config import Settings
from lorgnette.data.memory_rows import write_rows
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics import own_metric
from lorgnette.metrics.registry import METRICS
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.run import Run
from lorgnette.report.run_dir import RunDir
from lorgnette.training.data_module import TrainingData

Chosen = Callable[..., Settings]


@pytest.mark.parametrize("has_started", [False, True])
def test_only_a_run_that_has_started_stays(
    has_started: bool, make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: Settings, run_dir: RunDir, *_: Any) -> None:
        assert run_dir.config.is_file()
        assert run_dir.manifest.is_file()
        if has_started:
            run_dir.log.touch()
        raise LorgnetteError("no")

    monkeypatch.setattr(train_module, "_train", fail)
    with pytest.raises(LorgnetteError, match="no"):
        train(make_settings())
    assert (tmp_path / "run").exists() is has_started


def test_a_run_of_teach_is_not_resumed(tmp_path: Path) -> None:
    for name in ("config.yaml", "journal.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="a run of `teach`, not of `train`") as caught:
        resume(tmp_path)
    assert caught.value.hint == (
        f"go on with it: lorgnette teach --run {tmp_path}; "
        f"or train on its answers: lorgnette train {tmp_path}/config.yaml run={tmp_path}-trained"
    )


@pytest.mark.parametrize("is_named", [False, True])
def test_what_failed_ranks_printed_stays_if_the_error_names_it(
    is_named: bool, make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "run" / "ranks" / "rank-1.log"

    def fail(settings: Settings, run_dir: RunDir, *_: Any) -> None:
        run_dir.ranks.mkdir()
        log.write_text("no memory")
        raise LorgnetteError("no", hint=f"see its output: {log}" if is_named else None)

    monkeypatch.setattr(train_module, "_train", fail)
    with pytest.raises(LorgnetteError, match="no"):
        train(make_settings())
    assert log.exists() is is_named
    assert (tmp_path / "run").exists() is is_named


def test_auto_metrics_are_resolved_once(
    make_settings: Chosen, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml names the metrics, so that a resumed run and `evaluate` use the same."""
    colors, labels = ["red", "green", "blue", "black"], ["warm", "cold", "cold", "warm"]
    rows = [f"{color}.png,{label}\n" for color, label in zip(colors, labels, strict=True)]
    captions.write_text("image_path,caption\n" + "".join(rows))
    seen: list[Settings] = []
    monkeypatch.setattr(train_module, "_train", lambda settings, *_: seen.append(settings))
    train(make_settings("predict.metrics=auto"))
    resume(tmp_path / "run")
    assert [settings.predict.metrics for settings in seen] == [("label",)] * 2
    assert config.read_recipe(tmp_path / "run" / "config.yaml")["predict"]["metrics"] == ["label"]


def test_a_folder_with_other_files_stays(
    make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(settings: Settings, run_dir: RunDir, *_: Any) -> None:
        (run_dir.path / "notes.txt").write_text("mine")
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_train", fail)
    with pytest.raises(KeyboardInterrupt):
        train(make_settings())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"notes.txt", "config.yaml", "manifest.json"}
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "run")  # it can be resumed


def test_a_used_run_folder_is_refused_before_the_data_is_read(
    make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    monkeypatch.setattr(TrainingData, "load", lambda *_: pytest.fail("data was read"))
    with pytest.raises(UsageError, match="exists and is not empty"):
        train(make_settings())


def test_a_folder_of_a_run_that_never_began_is_used(make_settings: Chosen, tmp_path: Path, monkeypatch) -> None:
    """It was killed while it wrote its first files."""
    monkeypatch.setattr(train_module, "_train", lambda *_: None)
    (tmp_path / "run").mkdir()
    for name in ("manifest.json", ".lock", f".config.yaml.{10**8}.part"):
        (tmp_path / "run" / name).write_text("{")
    with pytest.raises(UsageError, match=r"stopped before its first step · .* · start it again as before"):
        resume(tmp_path / "run")
    train(make_settings())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"manifest.json", "config.yaml"}
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["images"]


def test_two_processes_do_not_train_in_one_folder(make_settings: Chosen, tmp_path: Path, monkeypatch) -> None:
    """Neither of the two commands begins, and the failure of one does not remove the other's files."""

    def try_both(settings: Settings, run_dir: RunDir, *_: Any) -> None:
        before = sorted(run_dir.path.iterdir())
        with pytest.raises(UsageError, match=f"process {os.getpid()} is training in this run folder"):
            resume(tmp_path / "run")
        run_dir.config.rename(tmp_path / "config.yaml")
        with pytest.raises(UsageError, match=f"process {os.getpid()} is training in this run folder"):
            train(make_settings())
        (tmp_path / "config.yaml").rename(run_dir.config)
        assert sorted(run_dir.path.iterdir()) == before

    monkeypatch.setattr(train_module, "_train", try_both)
    train(make_settings())


@pytest.mark.parametrize("is_deleted", [False, True], ids=["renamed", "deleted"])
def test_a_run_whose_folder_is_gone_stops_at_the_next_save(
    is_deleted: bool, make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(*_: Any) -> None:
        shutil.rmtree(tmp_path / "run") if is_deleted else (tmp_path / "run").rename(tmp_path / "other")

    monkeypatch.setattr("lorgnette.training.callbacks.TrainingCallbacks.on_step_end", move)
    with pytest.raises(LorgnetteError, match=r"run folder, or the \.lock in it, was deleted or renamed"):
        train(make_settings("train.save_steps=1", "data.holdout=0"))
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "other" / "log.jsonl").exists() is not is_deleted
    if not is_deleted:
        monkeypatch.undo()
        assert (resume(tmp_path / "other").adapter / "adapter_config.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_step_and_the_run_resumes(
    number: signal.Signals, make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:
    """The exit status is a shell's: 128 and the signal's number."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump_settings(make_settings("train.batch_size=1")))
    monkeypatch.setattr(
        "lorgnette.training.callbacks.TrainingCallbacks.on_step_end", lambda *_: os.kill(os.getpid(), number)
    )
    done = cli("train", recipe)
    assert done.status == 128 + number
    assert f"saved      at step 1; to resume: lorgnette train --resume {tmp_path / 'run'}\nstopped\n" in done.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    if number == signal.SIGTERM:
        monkeypatch.undo()
        done = cli("train", "--resume", tmp_path / "run")
        assert done.status == 0
        assert "resumed    at step 1 of 4" in done.err


def test_an_unavailable_tracker_is_refused_before_torch_is_needed(
    make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.report.trackers.tracker.is_installed", lambda name: False)
    monkeypatch.setattr("lorgnette.training.run.run_training", lambda *_: pytest.fail("training started"))
    with pytest.raises(UsageError, match="tracker 'wandb' is not installed"):
        train(make_settings("report_to=wandb"))
    assert not (tmp_path / "run").exists()


def test_runs_without_a_name_are_numbered(
    make_settings: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_module, "_train", lambda *_: None)
    runs = [train(make_settings("run=null", "predict.metrics=ROUGE-L"), name="coco") for _ in range(2)]
    assert [str(run.path) for run in runs] == ["runs/coco", "runs/coco-2"]
    saved = config.load_settings(config.read_recipe(runs[1].folder.config))
    expected = make_settings(f"run={tmp_path / 'runs' / 'coco-2'}", "predict.metrics=ROUGE-L")
    assert saved == expected  # absolute paths: it can be resumed from any folder
    assert resume(runs[1].path).path == runs[1].path


def test_a_run_of_several_files_has_the_path_of_each(make_settings: Chosen, captions: Path, tmp_path: Path) -> None:
    """So that it can be resumed from any folder, and notices a change in any of them."""
    second = shutil.copy(captions, captions.with_name("second.csv"))
    settings = make_settings(f"data={os.path.relpath(captions)},{os.path.relpath(second)}", f"run={tmp_path / 'run'}")
    saved = train_module._make_absolute(settings, RunDir(tmp_path / "run"))
    assert str(saved.data.path) == f"{captions.resolve()},{Path(second).resolve()}"
    data = TrainingData.load(saved, Terminal())
    assert data.files == (captions.resolve(), Path(second).resolve())
    assert {str(path) for path in data.files} <= data.hash_inputs().keys()


def test_rows_in_memory_are_written_into_the_run_and_move_with_it(tiny: Path, tmp_path: Path) -> None:
    """The data is part of the run: it is trained by path, and found where the folder is moved to."""
    rows = [
        {"image": PIL.Image.new("RGB", (60, 40), color), "caption": color}
        for color in ("red", "green", "blue", "black", "white", "gray")
    ]
    options: dict[str, Any] = {"model": str(tiny), "run": tmp_path / "run", "image_size": 28, "report_to": "none"}
    options |= {
        "epochs": 1,
        "settings": {"predict": {"max_new_tokens": 2}, "lora.rank": 2},
        "train.batch_size": 2,
        "holdout": 2,
    }
    with pytest.raises(LorgnetteError, match="1 of 6 rows cannot be used"):
        train([*rows[:5], {"image": rows[5]["image"], "caption": ""}], **options)
    assert not (tmp_path / "run").exists()
    stopped = train(rows, callbacks=[lambda step, loss: step == 1], **options)
    assert stopped.path == tmp_path / "run"
    assert {path.name for path in (tmp_path / "run" / "data").iterdir()} == {"data.jsonl", "images"}
    assert [record["step"] for record in stopped.log if record["kind"] == "train"] == [1]
    assert "stopped by the callback <lambda>" in str(stopped.log)
    assert stopped.report.is_file()
    assert len(stopped.predictions) > 0
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = resume(tmp_path / "moved")
    assert moved.log[-1]["kind"]
    assert max(record["step"] for record in moved.log if record["kind"] == "train") > 1


def test_a_run_has_one_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two names for the run's folder · name=a, run="):
        train("captions.csv", name="a", run=tmp_path / "b")


def test_a_run_that_is_killed_after_its_rows_are_written_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_rows([{"image": PIL.Image.new("RGB", (8, 8)), "caption": "a"}], folder / "data")
    (folder / f".data.{10**8}.part").mkdir()
    RunDir.check_is_free(folder)
    (folder / "data" / "mine.txt").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        RunDir.check_is_free(folder)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_a_callback_loses_nothing(
    kind: type[BaseException], make_settings: Chosen, tmp_path: Path
) -> None:
    class Fail:
        def on_evaluate(self, step: int, scores: dict[str, float]) -> None:
            if step:
                raise kind("mine")

    settings = make_settings("train.eval_steps=1")
    with pytest.raises(kind, match="mine") as raised:
        train(settings, callbacks=[Fail()])
    assert "The run is saved at step 1; lorgnette.resume(" in raised.value.__notes__[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]
    assert "Stopped at step 1; lorgnette.resume(" in Run(tmp_path / "run")._repr_html_()
    assert "adapter:" not in Run(tmp_path / "run")._repr_html_()
    with pytest.raises(kind, match="mine"):  # at the last step all is written first
        resume(tmp_path / "run", callbacks=[Fail()])
    assert Run(tmp_path / "run").report.is_file()


def test_a_metric_of_the_user_scores_the_answers(make_settings: Chosen) -> None:
    def num_letters(answer: str, references: list[str]) -> float:
        return len(answer)

    try:
        with pytest.raises(UsageError, match="no such metric"):
            train(make_settings(), metrics=["num_letters"])
        run = train(make_settings("train.metric_for_best_model=num_letters"), metrics=[num_letters, "exact-match"])
        assert [row["metric"] for row in run.scores] == ["num_letters", "exact-match"]
        assert any("num_letters" in record for record in run.log)
        assert "num_letters" in run._repr_html_()
    finally:
        METRICS.pop("num_letters", None)
        own_metric._own.clear()
    assert "no such metric" in run._repr_html_()  # in another process, which does not know it


def test_settings_are_given_in_any_way(make_settings: Chosen, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(train_module, "_load", lambda settings, *_: seen.append(settings) or 1 / 0)
    for call in (
        lambda: train(captions, recipe="latex-ocr", settings={"train.learning_rate": 0.5}, epochs=7),
        lambda: train(captions, recipe="latex-ocr", settings={"train": {"learning_rate": 0.5}}, **{"train.epochs": 7}),
        lambda: train(settings=make_settings("train.epochs=7"), learning_rate=0.5, data=captions),
        lambda: train(make_settings("train.epochs=7", "train.learning_rate=0.5")),
        lambda: train([captions, str(captions)], train={"learning_rate": 0.5, "epochs": 7}),
    ):
        with pytest.raises(ZeroDivisionError):
            call()
    assert {(s.train.epochs, s.train.learning_rate) for s in seen} == {(7, 0.5)}
    assert [str(s.data.path) for s in seen] == [str(captions)] * 4 + [f"{captions},{captions}"]
    assert [s.predict.metrics for s in seen[:2]] == [("latex",)] * 2
    for call, message in (
        (lambda: train(make_settings(), settings=make_settings()), "two Settings"),
        (lambda: train(settings=make_settings(), recipe="latex-ocr"), "a recipe and whole Settings"),
        (lambda: train(captions, lerning_rate=1), "lerning_rate"),
        (lambda: train({"image": captions}), "one object, not rows"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_a_run_that_chooses_its_steps_resumes_bit_for_bit(make_settings: Chosen, tmp_path: Path, monkeypatch) -> None:
    """In the reference engine, stopped while the learning rate falls."""
    monkeypatch.setattr("lorgnette.training.auto_steps.LOW_LOSS", 100)
    words = ["train.epochs=auto", "train.batch_size=1", "train.learning_rate=0.01", "lora.dropout=0.1"]
    train(make_settings(*words, f"run={tmp_path / 'whole'}"))
    with monkeypatch.context() as context:
        context.setattr(
            "lorgnette.training.callbacks.TrainingCallbacks.on_step_end",
            lambda _, step, loss: os.kill(os.getpid(), signal.SIGINT) if step == 9 else None,
        )
        with pytest.raises(KeyboardInterrupt):
            train(make_settings(*words, f"run={tmp_path / 'late'}"))
    assert not (tmp_path / "late" / "adapter").exists()
    resume(tmp_path / "late")

    whole, late = (run_log.read_log(tmp_path / run / "log.jsonl") for run in ("whole", "late"))
    [end] = [record for record in whole if record["kind"] == "end"]
    assert (end["step"], end["reason"]) == (13, "low")
    assert [record for record in late if record["kind"] == "end"] == [end]
    curves = [
        [(r["step"], r["loss"], r["learning_rate"]) for r in log if r["kind"] == "train"] for log in (whole, late)
    ]
    assert curves[0] == curves[1]
    weights = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "late")]
    assert weights[0] == weights[1]


class RowError(Exception):
    pass


def test_a_callback_that_raises_stops_all_ranks(
    make_settings: Chosen, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The caller gets the exception, though another process raised it, when the step is saved."""

    def fail(step: int, loss: float) -> None:
        if step == 2:
            raise RowError("row 17")

    words = "device=cpu", "engine=fast", "train.batch_size=2", "train.epochs=2"
    with pytest.raises(RowError, match="row 17") as caught:
        train(make_settings(*words), callbacks=fail, gpus=2)
    run = tmp_path / "run"
    assert f"The run is saved at step 2; lorgnette.resume('{run}', gpus=2) goes on." in caught.value.__notes__
    assert "test_train.py" in caught.value.__notes__[-1]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert capfd.readouterr().err.count("saved      at step 2; to resume: ") == 1
