"""The notebook runs in a real kernel, with fewer images and steps, and stores no outputs."""

from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "first_hour.ipynb"
REASON = "needs nbclient and ipykernel (pip install -e '.[dev]')"
QUICK = 'NUM_DRAWN, SETTINGS = 8, {"max_steps": 2, "image_size": 28, "max_new_tokens": 3, "holdout": 2}'


def load() -> Any:
    return pytest.importorskip("nbformat", reason=REASON).read(NOTEBOOK, as_version=4)


def test_the_notebook_stores_no_outputs() -> None:
    cells = [cell for cell in load().cells if cell.cell_type == "code"]
    assert len(cells) > 10
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_a_stopped_run_is_resumed_by_its_name() -> None:
    text = "\n".join(cell.source for cell in load().cells)
    assert 'name="first-hour"' in text
    assert 'lorgnette.resume("runs/first-hour")' in text  # `run` has no value after the stop button


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient", reason=REASON), pytest.importorskip("nbformat", reason=REASON)
    pytest.importorskip("ipykernel", reason=REASON)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = load()
    [place] = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(QUICK))
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    # Each result shows itself as HTML.
    for last_line, text in (
        ("report", "Ready to train"),
        ("run", "Run first-hour"),
        ("run.predictions", "data:image/jpeg;base64,"),
        ("run.show_report()", "srcdoc="),
        ("answers", "before"),
        ("    display(comparison)", "is_short"),
    ):
        [cell] = [own for source, own in outputs.items() if source.splitlines()[-1] == last_line]
        assert text in cell[-1].data["text/html"], last_line
    # Lines are plain text in one stream, without rich's blocks of HTML and without terminal codes for the cursor.
    training = next(own for source, own in outputs.items() if "lorgnette.train(" in source)
    lines = "".join(out.text for out in training if out.get("name") == "stdout")
    assert "\nstep 2 " in lines
    assert "IProgress" not in str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "\x1b[?25l" not in lines
    assert all("text/html" not in out.get("data", {}) for out in training[:-1])
    assert (tmp_path / "adapter.zip").is_file()
