"""A `teach` run from the first image to the last: what the page sees, and what the files hold."""

from pathlib import Path

from taught_run import ENOUGH, TAB, open_run, truth

from lorgnette import data
from lorgnette.teaching.events import Event
from lorgnette.teaching.journal import read_events


def read_captions(run: Path) -> dict[str, str]:
    """Image's name → caption, by the reader of `check` and `train`, in the file's order."""
    rows = list(data.read(run / "captions.csv", prompt="What?"))
    assert all(not hasattr(row, "message") for row in rows), rows
    return {row.images[0].path.name: row.reference for row in rows}  # type: ignore[union-attr]


def test_a_run_to_its_end(tmp_path: Path) -> None:
    reports: list[list[Event]] = []
    with open_run(tmp_path, 30, write_report=reports.append, commands=("lorgnette predict",)) as run:
        asked = [run.answer() for _ in range(20)]
        assert [current["number"] for current in asked] == list(range(1, 21))
        view = run.until_idle()
        assert view["counts"] == {"answered": 20, "skipped": 0, "left": 10, "total": 30}
        assert view["tuned_on"] >= ENOUGH
        run.session.finish(TAB)
        view = run.until(lambda view: view["phase"] == "finished")
        assert run.learner.rounds[-1] == run.learner.rounds[-1]
        assert len(run.learner.rounds[-1]) == 20
        assert {name: bool(path) for name, path in view["files"].items()} == {
            "captions": True, "adapter": True, "report": False, "suggestions": True
        }  # fmt: skip
    captions = read_captions(run.folder)
    assert list(captions) == [current["name"] for current in asked]
    assert list(captions.values()) == [truth(current["image"]) for current in asked]
    left = (run.folder / "suggestions.csv").read_text().splitlines()
    assert left[0] == "image_path,caption,surety"
    sureties = [float(line.rsplit(",", 1)[1]) for line in left[1:]]
    assert len(sureties) == 10
    assert sureties == sorted(sureties)
    assert reports == [read_events(run.folder / "journal.jsonl")]
    assert run.learner.is_closed
