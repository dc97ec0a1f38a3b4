"""Progress in a notebook: the line, and how often it changes."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lorgnette.report import console, notebook_progress
from lorgnette.report.console import Terminal
from lorgnette.report.notebook_progress import NotebookProgress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a notebook whose clock moves by 0.1 s at each look."""
    lines: list[str] = []

    def show(content: dict[str, str], **_: Any) -> Any:
        lines.append(content["text/plain"])
        return SimpleNamespace(update=show)

    module = ModuleType("IPython.display")
    module.display = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    clock = iter(range(10**6))
    monkeypatch.setattr(notebook_progress, "time", SimpleNamespace(monotonic=lambda: 0.1 * next(clock)))
    return lines


def test_the_line_says_how_much_is_done_and_left() -> None:
    progress = NotebookProgress("steps", 10, completed=4)
    assert progress.format(0) == f"steps      {'█' * 9}{'░' * 15} 4/10 0:00"
    progress.advance(3, "loss 1.2")
    assert progress.format(90) == f"steps      {'█' * 16}{'░' * 8} 7/10 1:30 left 1:30 loss 1.2"
    progress.advance(3)
    assert progress.format(120) == f"steps      {'█' * 24} 10/10 2:00"
    assert NotebookProgress("rows").format(61) == "rows       0 1:01"


def test_the_line_appears_late_and_changes_seldom(shown: list[str]) -> None:
    progress = NotebookProgress("steps", 50)
    for _ in range(8):
        progress.advance(1)
    assert not shown
    progress.close()
    assert not shown
    for _ in range(32):
        progress.advance(1)
    assert 1 < len(shown) < 10
    progress.close()
    assert " 40/50 " in shown[-1]


def test_a_terminal_in_a_notebook(
    shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines go to one stream, and the progress is not rich's, which shows nothing without ipywidgets."""
    monkeypatch.setattr(console, "is_notebook", lambda: True)
    terminal = Terminal()
    terminal.print("a remark")
    terminal.print_result("[a] result")
    with terminal.show_progress("steps", 20) as advance:
        for _ in range(20):
            advance(1, "loss 2")
    with terminal.show_transfer("model") as on_progress:
        for _ in range(20):
            on_progress(1, 2_000_000)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("a remark\n[a] result\n", "")
    assert shown[0].endswith("loss 2")
    assert shown[-1].startswith("model      20 ")
    assert shown[-1].endswith(" 40.0 MB")


def test_a_process_outside_of_a_notebook() -> None:
    assert not console.is_notebook()
    assert not Console().is_jupyter
