"""docs/coming-from.md is the printed page, and its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest
from coming_from_page import SECTIONS, format_coming_from_page
from typer.core import TyperGroup
from typer.main import get_command

from lorgnette import cli
from lorgnette.grammar import parse_words
from lorgnette.synonyms import TOOLS

RECIPE = "lora_rank: 8\nlora_target: all\nstage: sft\ncutoff_len: 2048\nnum_train_epochs: 3.0\n"


def test_the_page_is_printed_from_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "coming-from.md"
    assert page.read_text(encoding="utf-8") == format_coming_from_page()


def test_every_tool_has_a_section() -> None:
    assert list(SECTIONS) == list(TOOLS.values())


def test_its_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("captions.csv").touch()
    Path("captions.jsonl").touch()
    Path("qwen2vl_lora_sft.yaml").write_text(RECIPE)
    group = get_command(cli.app)
    assert isinstance(group, TyperGroup)
    blocks = re.findall(r"```bash\n(.*?)```", format_coming_from_page(), re.DOTALL)
    assert len(blocks) == len(SECTIONS)
    for block in blocks:
        words = shlex.split(block)[1:]
        with group.make_context("lorgnette", list(words)) as context:
            name, command, rest = group.resolve_command(context, words)
            assert command is not None
            with command.make_context(name, rest, parent=context) as parsed:
                request = parse_words(parsed.params["words"])
        settings = request.load(lambda line: None)
        assert settings.data.path in (Path("captions.csv"), Path("captions.jsonl"))
