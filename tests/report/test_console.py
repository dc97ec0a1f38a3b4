"""Text is printed literally, one line each; progress bars appear on terminals only."""

import io
import json
import math
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from lorgnette.report import console
from lorgnette.report.console import Terminal, print_result


def build_terminal(*, is_terminal: bool) -> tuple[Terminal, io.StringIO]:
    output = io.StringIO()
    return Terminal(Console(file=output, force_terminal=is_terminal, width=60, color_system=None)), output


@pytest.mark.parametrize(
    "text", ["[red]a[/] [/]", "a :cat: b", "C:\\new\\", "x" * 200, "图 é", "", "[link=x]", "two\nlines"]
)
def test_text_is_not_markup_and_is_never_wrapped(text: str) -> None:
    terminal, output = build_terminal(is_terminal=False)
    for print_text in (terminal.print, terminal.warn, terminal.error):
        print_text(text)
    assert output.getvalue() == f"{text}\n" * 3


def test_a_warning_is_yellow() -> None:
    output = io.StringIO()
    Terminal(Console(file=output, force_terminal=True, color_system="standard")).warn("careful")
    assert output.getvalue() == "\x1b[33mcareful\x1b[0m\n"


def test_a_progress_bar_of_a_resumed_run_starts_where_it_stopped() -> None:
    terminal, output = build_terminal(is_terminal=True)
    with terminal.show_progress("steps", 10, completed=4) as advance:
        advance(5, "loss [1.0] :cat:")
        terminal.print("a line meanwhile")
    text = output.getvalue()
    assert "9/10" in text
    assert "loss [1.0] :cat:" in text
    assert "a line meanwhile" in text


def test_without_a_terminal_there_is_no_progress_bar() -> None:
    terminal, output = build_terminal(is_terminal=False)
    with terminal.show_progress("steps", 10) as advance:
        advance(3, "loss 1.0")
    assert not output.getvalue()


def test_the_time_of_work_is_shown_on_a_terminal_until_it_is_done() -> None:
    terminal, output = build_terminal(is_terminal=True)
    with terminal.show_time("loading"):
        terminal.print("a line meanwhile")
    text = output.getvalue()
    assert "loading    0:00:00" in text
    assert "a line meanwhile" in text
    assert text.endswith("\x1b[2K")  # the line is gone
    terminal, output = build_terminal(is_terminal=False)
    with terminal.show_time("loading"):
        pass
    assert not output.getvalue()


@pytest.mark.parametrize(("total", "shown"), [(None, "12,345"), (20_000, "12345/20000")])
def test_a_count_is_shown_without_a_thread(monkeypatch: pytest.MonkeyPatch, total: int | None, shown: str) -> None:
    threads = threading.active_count()
    terminal, output = build_terminal(is_terminal=True)
    with terminal.show_count("reading", total) as advance:
        advance(5)
        assert not output.getvalue()  # work of less than a second shows nothing
        monkeypatch.setattr(console, "UPDATE_SECONDS", 0.0)
        monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: math.inf))
        advance(12_340)
        assert shown in output.getvalue()
        assert threading.active_count() == threads
        terminal.print("a line meanwhile")
    assert "a line meanwhile" in output.getvalue()
    assert output.getvalue().endswith("\x1b[2K")  # the line is gone
    terminal, output = build_terminal(is_terminal=False)
    with terminal.show_count("reading", total) as advance:
        advance(12_345)
    assert not output.getvalue()


def test_a_progress_bar_lets_errors_pass() -> None:
    terminal, _ = build_terminal(is_terminal=True)
    with pytest.raises(KeyboardInterrupt), terminal.show_progress("steps", 10):
        raise KeyboardInterrupt


def test_results_and_remarks_have_their_own_streams(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    terminal.print("a remark")
    terminal.print_result("a [result]")
    assert capsys.readouterr() == ("a [result]\n", "a remark\n")


def test_a_console_takes_results_and_remarks() -> None:
    terminal, output = build_terminal(is_terminal=False)
    terminal.print("a remark")
    terminal.print_result("a result")
    assert output.getvalue() == "a remark\na result\n"


HOSTILE = "a\x1b[2Jb\x9b31m\x07\u202e.png"


def test_a_name_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal, output = build_terminal(is_terminal=False)
    for print_text in (terminal.print, terminal.warn, terminal.error):
        print_text(HOSTILE)
    assert output.getvalue() == "a\\u001b[2Jb\\u009b31m\\u0007\\u202e.png\n" * 3
    terminal, output = build_terminal(is_terminal=True)
    with terminal.show_progress(HOSTILE, 2) as advance:
        advance(1, HOSTILE)
    with terminal.show_transfer(HOSTILE) as receive:
        receive(1, 10)
    with terminal.show_time(HOSTILE):
        pass
    assert "\x1b[2J" not in output.getvalue()
    assert "\x9b" not in output.getvalue()
    print_result(HOSTILE)
    assert capsys.readouterr().out == "a\\u001b[2Jb\\u009b31m\\u0007\\u202e.png\n"


def test_a_printed_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(json.dumps({"name": HOSTILE}, ensure_ascii=False, indent=2))
    assert json.loads(capsys.readouterr().out) == {"name": HOSTILE}
