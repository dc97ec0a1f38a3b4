"""Every command, tree and snippet of README and docs is executed or compared."""

import doctest
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
from typer.core import TyperGroup
from typer.main import get_command

from lorgnette import cli, config

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorgnette"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_life_of_one_example(here: Path) -> None:
    page = ROOT / "docs" / "architecture.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 20
    assert not failed


def test_the_tree_is_the_house() -> None:
    tree = next(block for block in blocks(ROOT / "docs" / "architecture.md", "") if "src/lorgnette/" in block)
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in SOURCE.iterdir() if not path.name.startswith("__")}
    assert named == there


def test_settings_page_is_printed_from_the_settings() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == config.format_markdown()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        assert {word for line in re.findall(r"make ([a-z ]+)`", text) for word in line.split()} <= targets


@pytest.fixture
def own_pictures(here: Path, tiny: Path) -> Path:
    """What README's reader has: a model folder, two CSVs, a photo."""
    shutil.copytree(tiny, here / "Qwen2-VL-2B-Instruct")
    PIL.Image.new("RGB", (64, 48), "red").save(here / "photo.jpg")
    for name in ("captions", "more"):
        rows = []
        for i in range(8):
            PIL.Image.new("RGB", (64, 48), (30 * i, 90, 10)).save(here / f"{name}{i}.png")
            rows.append(f"{name}{i}.png,picture number {i}")
        (here / f"{name}.csv").write_text("\n".join(["image_path,caption", *rows]) + "\n")
    return here


def test_the_tutorials_one_command_is_the_one_that_is_tested() -> None:
    [block] = blocks(ROOT / "README.md", "bash")
    assert block == "lorgnette train coco-caption\n"
    assert '"train", "coco-caption"' in (ROOT / "tests" / "hub" / "test_road.py").read_text(encoding="utf-8")


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lorgnette")]


def test_readme_commands_and_python_run(own_pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWANLAB_MODE", "disabled")
    for words in commands(ROOT / "README.md"):
        cli.app(words, standalone_mode=False)
    assert (own_pictures / "runs" / "coco-caption" / "report.html").is_file()
    assert (own_pictures / "compare.html").is_file()
    [code] = blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert (own_pictures / "runs" / "captions" / "adapter").is_dir()


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guides_commands_run_and_print_what_it_says(page: Path, here: Path) -> None:
    """The `sh` blocks of a page are one script, in an empty folder; a `text` block holds lines, or parts of them, that
    the block before it prints; a block without a word is not of this script, and the page says what of."""
    found = re.findall(r"```(sh|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    mark, bin_folder = "– block –", here / "bin"
    bin_folder.mkdir()
    for name, command in (("python", ""), ("lorgnette", "-m lorgnette")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (bin_folder / name).chmod(0o755)
    script = "set -eu\n" + "".join(f"echo '{mark}'\n{text}" for kind, text in found if kind == "sh")
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "COLUMNS": "400",
        "SWANLAB_MODE": "disabled",
    }
    (here / "empty").mkdir()
    done = subprocess.run(
        ["bash", "-c", script], cwd=here / "empty", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    printed = done.stdout.split(f"{mark}\n")
    block = 0
    for kind, text in found:
        block += kind == "sh"
        for line in text.splitlines() if kind == "text" else ():
            assert line in printed[block], line


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_no_command_of_a_guide_is_beside_its_script(page: Path) -> None:
    """A block of another kind would not be run, and nobody would notice."""
    kinds = {"sh", "text", "python", ""}
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        assert kind in kinds
        assert kind == "sh" or not re.search(r"^\$? ?lorgnette \w", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_mention_exists(page: Path) -> None:
    """Verbs, their options and settings that stand in a sentence, where no test runs them."""
    verbs = get_command(cli.app)
    assert isinstance(verbs, TyperGroup)
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", text):
        if found := re.match(r"lorgnette ([a-z]+)\b(.*)", span):
            assert found[1] in verbs.commands, span
            options = {name for param in verbs.commands[found[1]].params for name in param.opts}
            assert set(re.findall(r"--[a-z-]+", found[2])) <= options, span
        if found := re.match(r"((?:data|encode|lora|train|predict|track)\.\w+)(=|$)", span):
            assert f"`{found[1]}`" in settings, span


def test_data_page_forms_are_read(here: Path) -> None:
    """Each block is the file named right before it; the pictures are where the page says they may lie."""
    from lorgnette import data

    for folder, name in (("pictures", "0001"), ("pictures", "0002"), ("images", "0001"), ("val2014", "0002")):
        (here / folder).mkdir(exist_ok=True)
        PIL.Image.new("RGB", (64, 48), "red").save(here / folder / f"{name}.jpg")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w.]+)`:\n\n```(?:csv|json)\n(.*?)```", page, re.DOTALL)
    assert len(named) == page.count("```csv") + page.count("```json")
    read = {}
    for name, block in named:
        path = here / name
        path.write_text(block if path.suffix != ".jsonl" else lined(block), encoding="utf-8")
        report = data.check_rows(data.read(path))
        assert not report.problems or name == "pets.json"  # its columns are named by dataset_info.json
        read[name] = report.num_usable
    assert {name: count for name, count in read.items() if count != 1} == {
        "captions_train2017.json": 2,
        "dataset_coco.json": 2,
        "pets.json": 0,
        "swift.jsonl": 3,
    }
    assert data.check_rows(data.read(here)).num_usable == 1  # metadata.csv makes it a described folder


def lined(block: str) -> str:
    """Objects one after the other, each on a line of its own."""
    lines, rest = [], block.strip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        lines.append(json.dumps(value) + "\n")
        rest = rest[end:].strip()
    return "".join(lines)


@pytest.mark.parametrize("to", ["json", "csv", "llava", "llama-factory", "swift", "openai"])
def test_data_page_names_every_export(to: str) -> None:
    from lorgnette.data import EXPORTERS

    [row] = re.findall(rf"^\| {to} \| `(\.\w+)`", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert EXPORTERS[to].suffix == row  # type: ignore[index]
    assert len(EXPORTERS) == 6
