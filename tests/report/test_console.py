"""What is said is said as it is, on a line of its own; bars are drawn on terminals only."""

import io

import pytest
from rich.console import Console

from lorgnette.report.console import Terminal


def terminal(*, drawn: bool) -> tuple[Terminal, io.StringIO]:
    said = io.StringIO()
    return Terminal(Console(file=said, force_terminal=drawn, width=60, color_system=None)), said


@pytest.mark.parametrize(
    "text", ["[red]a[/] [/]", "a :cat: b", "C:\\new\\", "x" * 200, "图 é", "", "[link=x]", "two\nlines"]
)
def test_text_is_not_markup_and_is_never_broken(text: str) -> None:
    out, said = terminal(drawn=False)
    for say in (out.print, out.warn, out.error):
        say(text)
    assert said.getvalue() == f"{text}\n" * 3


def test_a_warning_has_a_colour_where_there_are_colours() -> None:
    said = io.StringIO()
    Terminal(Console(file=said, force_terminal=True, color_system="standard")).warn("careful")
    assert said.getvalue() == "\x1b[33mcareful\x1b[0m\n"


def test_a_bar_goes_on_where_it_stopped() -> None:
    out, said = terminal(drawn=True)
    with out.show_progress("steps", 10, done=4) as advance:
        advance(5, "loss [1.0] :cat:")
        out.print("a line meanwhile")
    drawn = said.getvalue()
    assert "9/10" in drawn
    assert "loss [1.0] :cat:" in drawn
    assert "a line meanwhile" in drawn


def test_without_a_terminal_no_bar_is_drawn() -> None:
    out, said = terminal(drawn=False)
    with out.show_progress("steps", 10) as advance:
        advance(3, "loss 1.0")
    assert not said.getvalue()


def test_a_failure_goes_through_a_bar() -> None:
    out, _ = terminal(drawn=True)
    with pytest.raises(KeyboardInterrupt), out.show_progress("steps", 10):
        raise KeyboardInterrupt


def test_the_default_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().print("here")
    assert capsys.readouterr() == ("", "here\n")
