"""Every example of a command's help is a command, and stands in its help."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from typer.core import TyperGroup
from typer.main import get_command

from lorgnette import cli as cli_module
from lorgnette.examples import EXAMPLES
from lorgnette.grammar import parse_words

LINES = [(command, line) for command, lines in EXAMPLES.items() for line in lines]
RUN = ("settings", "recipe", "preview captions.csv", "prepare captions.csv")
"""Beginnings of commands that take no time."""


def list_commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        yield prefix + name
        if isinstance(command, TyperGroup):
            yield from list_commands(command, f"{prefix}{name} ")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The files that the examples name."""
    (tmp_path / "photos").mkdir()
    for i in range(12):
        PIL.Image.new("RGB", (28, 28), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    for name in ("captions.csv", "more.csv"):
        (tmp_path / name).write_text("image_path,caption\n" + "".join(f"{i}.png,red {i}\n" for i in range(12)))
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "mine.yaml").write_text("# Mine\nseed: 1\n")
    return tmp_path


def test_every_command_has_three_examples() -> None:
    assert set(EXAMPLES) == set(list_commands(get_command(cli_module.app)))


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_in_the_help(command: str, cli: Callable[..., Any]) -> None:
    done = cli(*command.split(), "--help")
    for line in EXAMPLES[command]:
        assert f"\n    {line}\n" in done.out + "\n"
        assert line.startswith(f"lorgnette {command.split(maxsplit=1)[0]}") or command.startswith(("recipe", "model"))


def test_examples_are_parsed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options exist, their words are data or recipes, and their settings have values that fit."""
    monkeypatch.chdir(here)
    group = get_command(cli_module.app)
    assert isinstance(group, TyperGroup)
    for _, line in LINES:
        words = shlex.split(line)[1:]
        with group.make_context("lorgnette", list(words)) as context:
            name, found, rest = group.resolve_command(context, words)
            assert found is not None
            with found.make_context(name, rest, parent=context) as parsed:
                request = parse_words(parsed.params.get("words") or [], parsed.params.get("recipe"))
        request.load(lambda remark: None)


@pytest.mark.parametrize("line", [line for _, line in LINES if line[10:].startswith(RUN)])
def test_an_example_runs(line: str, here: Path, cli: Callable[..., Any]) -> None:
    if "copy" in line:
        (here / "mine.yaml").unlink()
    done = cli(*shlex.split(line)[1:])
    assert done.status == 0, done.err
