"""Every command, tree and snippet of README and docs is executed or compared."""

import doctest
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from typer.core import TyperGroup
from typer.main import get_command

from lorgnette import cli, config
from lorgnette.commands import train as train_module
from lorgnette.commands.arguments import build_settings
from lorgnette.hub import modelscope
from lorgnette.metrics import own_metric
from lorgnette.metrics.registry import METRICS
from lorgnette.verification.peft_check import WORKER

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorgnette"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def read_blocks(page: Path, language: str) -> list[str]:
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


def test_the_tree_lists_the_package() -> None:
    tree = next(block for block in read_blocks(ROOT / "docs" / "architecture.md", "") if "src/lorgnette/" in block)
    listed = set(re.findall(r"^  (\w+(?:\.py|/))", tree, re.MULTILINE))
    hidden = ("__", "py.typed")
    existing = {path.name + "/" * path.is_dir() for path in SOURCE.iterdir() if not path.name.startswith(hidden)}
    assert listed == existing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
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
def own_images(here: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two CSVs, a photo, a folder of photos, and a small model under the names of two in a hub's cache, as README's
    reader has them."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(here / "cache"))
    for model in (config.Settings().model, "Qwen/Qwen3-VL-2B-Instruct"):
        shutil.copytree(tiny, modelscope.get_cache_folder("model", model, "master"))
    (here / "photos").mkdir()
    for name in ("photo.jpg", "photos/1.jpg"):
        PIL.Image.new("RGB", (64, 48), "red").save(here / name)
    for name in ("captions", "more"):
        rows = []
        for i in range(8):
            PIL.Image.new("RGB", (64, 48), (30 * i, 90, 10)).save(here / f"{name}{i}.png")
            rows.append(f"{name}{i}.png,image number {i}")
        (here / f"{name}.csv").write_text("\n".join(["image_path,caption", *rows]) + "\n")
    return here


def test_the_tutorials_one_command_is_tested() -> None:
    [block] = read_blocks(ROOT / "README.md", "bash")
    assert block == "lorgnette train coco-caption\n"
    assert '"train", "coco-caption"' in (ROOT / "tests" / "hub" / "test_recipe_from_hubs.py").read_text(
        encoding="utf-8"
    )


def read_commands(page: Path) -> list[list[str]]:
    lines = [line for block in read_blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lorgnette")]


def shrink_trainings(monkeypatch: pytest.MonkeyPatch, **more: object) -> None:
    """Small images and short answers, and `more` settings, where the page sets nothing else."""
    small = {"predict.max_new_tokens": 2, "image_size": 28, "report_to": "none", **more}
    monkeypatch.setattr(
        train_module,
        "build_settings",
        lambda data, values, **options: build_settings(data, values={**small, **values}, **options),
    )


def test_readme_commands_and_python_run(own_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_trainings(monkeypatch, max_steps=3)
    for words in read_commands(ROOT / "README.md"):
        cli.app(words, standalone_mode=False)
    assert (own_images / "runs" / "captions" / "report.html").is_file()
    assert (own_images / "runs" / "more" / "report.html").is_file()
    assert (own_images / "compare.html").is_file()
    [code] = read_blocks(ROOT / "README.md", "python")
    exec(compile(code, "README.md", "exec"), {})
    assert (own_images / "runs" / "captions-2" / "adapter").is_dir()


def test_extras_that_pages_install_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "notebooks" / "first_hour.ipynb", *SOURCE.rglob("*.py")]
    for page in pages:
        for names in re.findall(r"(?:lorgnette|'\.)\[([a-z,]+)\]", page.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= set(extras), f"{page.name}: {names}"


def test_the_python_page_is_a_program(own_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks run one after the other, and leave what the page says."""
    shrink_trainings(monkeypatch, max_steps=4)
    names: dict[str, Any] = {}
    for block in read_blocks(ROOT / "docs" / "python.md", "python"):
        exec(compile(block, "python.md", "exec"), names)
    assert isinstance(names["answer"], str)
    assert [(row.prompt, row.base is None) for row in names["answers"]] == [("What is this?", False)] * 2
    assert (own_images / "runs" / "captions" / "report.html").is_file()
    assert (own_images / "runs" / "colors" / "data" / "data.jsonl").is_file()
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert f'lorgnette.resume("{names["run"].path}")' in page  # the run of the callbacks
    assert [score.name for score in names["scores"].scores[0]] == ["same_first_word", "ROUGE-L"]
    assert [len(frame) > 0 for frame in names["frames"][1:]] == [True, True]
    METRICS.pop("same_first_word")
    own_metric._own.clear()


RUN_DEMO_ONCE = """#!/bin/sh
kept={kept}/$(echo "$*" | tr ' /' '__')
case "$1 $*" in
  *max_new_tokens*) ;;
  demo*|train*) set -- "$@" predict.max_new_tokens=24 ;;
esac
if [ "$1" != demo ]; then
  exec {command} "$@"
elif [ ! -d "$kept" ]; then
  mkdir "$kept"
  {command} "$@" > "$kept/output" 2>&1 || {{ cat "$kept/output"; exit 1; }}
  cp -r "$3" "$kept"
else
  cp -r "$kept/$3" .
fi
cat "$kept/output"
"""
"""Several guides begin with the same `lorgnette demo --out FOLDER …`: it runs once, and the others take a copy.
Answers where the page sets no limit: no caption of the demo has 24 tokens, an untrained model's answer more."""


SHORTEN_ANSWERS = """shift 2
sed -i 's/"max_new_tokens": [0-9]*/"max_new_tokens": 3/' "$1"
"""
"""Of verify and merge: a guide shows that they answer, not what."""


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders and outputs of demos, by their arguments."""
    return tmp_path_factory.mktemp("demos")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guides_commands_run_and_print_what_it_says(
    page: Path, here: Path, demos: Path, fork_command: Callable[..., list[str]]
) -> None:
    """The `sh` blocks of a page are one script, run in an empty folder. A `text` block has lines, or parts of lines,
    that the block before it prints. A `python` block runs after the script where lorgnette is not imported, and what
    it prints is in the output of the block before it: plain transformers answers as lorgnette does. A block without
    a language is not run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])  # the reader's is perhaps taken here
    text = page.read_text(encoding="utf-8").replace("8790", port)
    blocks = re.findall(r"```(sh|text|python)\n(.*?)```", text, re.DOTALL)
    separator, bin_folder, folder = "– block –", here / "bin", here / "empty"
    bin_folder.mkdir()
    folder.mkdir()
    programs = {
        "python": [sys.executable],
        "lorgnette": fork_command("lorgnette"),
        "worker": fork_command(WORKER, plain=True),  # of verify and merge, which call it as `python -P WORKER …`
    }
    for name, command in programs.items():
        skipped = SHORTEN_ANSWERS if name == "worker" else ""
        text = f'#!/bin/sh\n{skipped}exec {shlex.join(command)} "$@"\n'
        if name == "lorgnette":
            text = RUN_DEMO_ONCE.format(kept=demos, command=shlex.join(command))
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    script = "set -eu\n" + "".join(f"echo '{separator}'\n{text}" for language, text in blocks if language == "sh")
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "COLUMNS": "400",
        "SWANLAB_MODE": "disabled",
        "FORK_EXECUTABLE": str(bin_folder / "worker"),
    }
    run = functools.partial(subprocess.run, cwd=folder, env=environment, text=True, timeout=600, check=False)
    result = run(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout
    outputs = result.stdout.split(f"{separator}\n")
    block = 0
    for language, text in blocks:
        block += language == "sh"
        for line in text.splitlines() if language == "text" else ():
            assert line in outputs[block], line
        if language == "python":
            code = here / "block.py"
            code.write_text(text + "\nimport sys\nassert not [m for m in sys.modules if m.startswith('lorgnette')]\n")
            other = run(fork_command(code, plain=True), capture_output=True)
            assert other.returncode == 0, other.stderr
            answer = other.stdout.strip()
            assert answer.startswith("A ")  # a short caption: the untrained model begins with "The image"
            assert answer in outputs[block]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_command_of_a_guide_is_in_its_script(page: Path) -> None:
    """A command in another block would not run, and nobody would notice."""
    for language, text in re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        assert language in ("sh", "text", "python", "")
        assert language == "sh" or not re.search(r"^\$? ?lorgnette \w", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_mention_exists(page: Path) -> None:
    """Commands, options and settings inside sentences, where no test runs them."""
    section_setting = r"(?:data|lora|train|predict)\.(?!json|csv)\w+"  # data.json is a file
    top_setting = "image_size|image_tokens|eos_token|max_length|report_to"
    cli_group = get_command(cli.app)
    assert isinstance(cli_group, TyperGroup)
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", text):
        if match := re.match(r"lorgnette ([a-z-]+)(.*)", span):
            assert match[1] in cli_group.commands, span
            options = {name for param in cli_group.commands[match[1]].params for name in param.opts}
            assert set(re.findall(r"--[a-z-]+", match[2])) <= options, span
        if match := re.match(rf"({section_setting}|{top_setting})(=|$)", span):
            assert f"`{match[1]}`" in settings, span


def test_data_page_formats_are_read(here: Path) -> None:
    """Each block is the file named right before it; the images are in the folders that the page names."""
    from lorgnette import data

    for folder, name in (("images", "0001"), ("images", "0002"), ("val2014", "0002")):
        (here / folder).mkdir(exist_ok=True)
        PIL.Image.new("RGB", (64, 48), "red").save(here / folder / f"{name}.jpg")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    files = re.findall(r"`([\w.]+)`:\n\n```(?:csv|json)\n(.*?)```", page, re.DOTALL)
    assert len(files) == page.count("```csv") + page.count("```json")
    num_usable = {}
    for name, block in files:
        path = here / name
        path.write_text(block if path.suffix != ".jsonl" else split_objects(block), encoding="utf-8")
        report = data.check_rows(data.read(path))
        assert not report.problems or name == "pets.json"  # its columns are named by dataset_info.json
        num_usable[name] = report.num_usable
    assert {name: count for name, count in num_usable.items() if count != 1} == {
        "captions_train2017.json": 2,
        "dataset_coco.json": 2,
        "pets.json": 0,
        "swift.jsonl": 3,
    }
    assert data.check_rows(data.read(here)).num_usable == 1  # metadata.csv makes it a described folder


def split_objects(block: str) -> str:
    """Write JSON objects that follow each other, one per line."""
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


def test_every_dependency_has_the_version_it_is_tested_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[<>=]", name)[0].lower().replace("_", "-") for name in dependencies}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    assert {name for name in names if not re.search(rf"^{re.escape(name)}==", pins, re.MULTILINE)} == set()
