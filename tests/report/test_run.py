"""A run as Python users want it, read from a folder. tests/commands/test_train.py has a real one."""

from pathlib import Path

import pytest

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError
from lorgnette.report.predictions import write_predictions
from lorgnette.report.run import Run
from lorgnette.report.run_dir import RunDir
from lorgnette.types import PredictionRow


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir.create(tmp_path / "run")
    settings = config.load_settings(None, ["predict.metrics=exact-match,edit-distance"])
    run_dir.config.write_text(config.dump_settings(settings))
    return run_dir


def test_a_run_that_has_not_finished_is_empty(run_dir: RunDir) -> None:
    run = Run(str(run_dir.path))  # type: ignore[arg-type]
    assert (run.path, Path(run), run.adapter) == (run_dir.path, run_dir.path, run_dir.adapter)
    assert (run.scores, run.predictions, run.log, run.verdict) == ([], [], [], "")
    assert run.best == run.adapter
    assert isinstance(run.settings, Settings)
    assert "Run run" in run._repr_html_()
    assert "report.html" not in run._repr_html_()
    with pytest.raises(LorgnetteError, match="no report yet"):
        run.show_report()


def test_a_run_of_teach_goes_on_in_its_own_way(run_dir: RunDir) -> None:
    run_dir.journal.touch()
    run = Run(run_dir.path)
    call = f"lorgnette.teach(run={str(run_dir.path)!r}) goes on"
    assert f"Not finished; {call}." in run._describe()
    with pytest.raises(LorgnetteError) as caught:
        run.show_report()
    assert caught.value.hint == call
    assert run_dir.resume_command == f"lorgnette teach --run {run_dir.path}"


def test_scores_answers_and_log_of_a_run(run_dir: RunDir) -> None:
    rows = [PredictionRow(f"{i}", (), "p", ("a cat",), base="a dog", tuned="a cat") for i in range(9)]
    write_predictions(run_dir.predictions, [*rows, PredictionRow("bare", (), "p", (), base="x", tuned="y")])
    run_dir.log.write_text('{"kind": "train", "step": 1, "loss": 2.0}\n{"kind": "eval", "step": 1, "eval_loss": 1.0}\n')
    run_dir.report.write_text("<p>page</p>")
    run_dir.best.mkdir()
    run = Run(run_dir.path)
    assert len(run.predictions) == 10
    match, distance = run.scores
    assert (match["metric"], match["before"], match["after"], match["change"]) == ("exact-match", 0.0, 1.0, 1.0)
    assert (match["low"], match["high"]) == (None, None)  # all differ alike: resampling shows no uncertainty
    assert match["p_value"] < 0.05
    assert distance["change"] < 0
    assert [record["kind"] for record in run.log] == ["train", "eval"]
    assert run.verdict in run._repr_html_().replace("&#39;", "'")
    assert "9 of 9" in run.verdict
    assert str(run.report) in run._repr_html_()
    assert "srcdoc" in run.show_report()._repr_html_()
    assert run.best == run_dir.best
    if pytest.importorskip("pandas"):
        assert run.to_pandas().set_index("metric").loc["exact-match", "after"] == 1.0


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match="not a run"):
        Run(tmp_path)
