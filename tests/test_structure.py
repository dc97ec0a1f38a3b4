"""The package's structure: every module is documented and tested, settings are few, shipped files have an origin;
and tests check shapes."""

import ast
import functools
import random
import re
from pathlib import Path

import jaxtyping
import PIL.Image
import pytest
import torch

from lorgnette import config
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.kernels.swiglu import swiglu_reference

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorgnette"
TESTED_ELSEWHERE = {
    "__main__.py": "test_cli.py",
    "data/downloaded_folders.py": "commands/test_cache.py",
    "data/portable_records.py": "data/test_memory_rows.py",
    "engine/base.py": "engine/test_fast.py",
    "features/cache_folder.py": "features/test_disk_cache.py",
    "features/decode_worker.py": "features/test_decode_process.py",
    "inference/dry_run.py": "inference/test_compile_worker.py",
    "inference/hf_generate.py": "inference/test_decode.py",
    "kernels/record_launches.py": "inference/test_compile_worker.py",
    "kernels/triton_import.py": "kernels/test_attention.py",
    "teaching/jobs.py": "teaching/test_device_thread.py",
}
"""Module → the test file that covers it, if that is not the one at the same place with the same name."""


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_has_a_docstring() -> None:
    modules = [path for folder in (SOURCE, ROOT / "tools", ROOT / "bench") for path in folder.rglob("*.py")]
    assert [path for path in modules if not ast.get_docstring(parse(path))] == []


def test_every_module_has_a_test_file() -> None:
    untested = []
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE)
        tests = [TESTED_ELSEWHERE.get(str(module), f"{module.parent}/test_{module.name}")]
        if module.parent.parent == Path("models"):  # one test of all families
            tests.append(f"models/test_{module.name}")
        if module.name != "__init__.py" and not any((ROOT / "tests" / test).is_file() for test in tests):
            untested.append(str(module))
    assert untested == []


def test_the_list_of_slow_tests_is_up_to_date() -> None:
    text = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    prefixes = re.findall(r'^    "(tests/[^"]+)",$', text, re.MULTILINE)
    assert len(prefixes) > 10
    for prefix in prefixes:
        path, _, function = prefix.partition("::")
        assert (ROOT / path).exists(), prefix
        assert not function or f"def {function}" in (ROOT / path).read_text(encoding="utf-8"), prefix


def test_only_its_command_imports_the_demo() -> None:
    importers = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorgnette.demo")
    }
    assert {name for name in importers if not name.startswith("demo/")} == {"commands/demo.py"}


def test_settings_are_few() -> None:
    assert len(config.list_settings()) <= 51


def test_shipped_files_have_an_origin() -> None:
    """The built-in model has a manifest; the image of the reference sample is the scene that tools/README.md names."""
    model = SOURCE / "demo" / "model"
    assert (model / "manifest.json").is_file()
    assert (model / "model.safetensors").stat().st_size <= 12_000_000
    scene = draw_scene(sample_scene(random.Random(20141))).resize((112, 112), PIL.Image.Resampling.BICUBIC)
    with PIL.Image.open(SOURCE / "verification" / "sample.png") as image:
        assert image.tobytes() == scene.tobytes()


@functools.cache
def list_calls(path: Path) -> set[str]:
    """The calls `a.b(…)` in a module, as "a.b"."""
    calls = [node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]
    return {
        f"{call.value.id}.{call.attr}"
        for call in calls
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name)
    }


def test_one_module_parses_what_comes_from_anybody() -> None:
    parsers = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "tomllib.load", "pickle.load", "pickle.loads"}
    modules = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if parsers & list_calls(path)}
    # Workers and the commands that start them read what the other has written.
    workers = {"features/decode_process.py", "features/decode_worker.py", "verification/peft_worker.py"}
    assert modules == {"io/parse.py", "io/processes.py", "training/launch.py", *workers}


def test_one_module_prints() -> None:
    """Others would print a name's control characters."""
    printers = {"typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"}
    modules = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if printers & list_calls(path)}
    assert modules == {"cli.py", "report/console.py"}  # cli.py: the version


def test_no_test_on_a_gpu_changes_its_capability() -> None:
    """Triton keeps the function of torch that it finds first, and would go on compiling for the other card."""
    name = "get_device_capability"
    paths = [path for path in (ROOT / "tests").rglob("test_*.py") if name in path.read_text(encoding="utf-8")]
    functions = [node for path in paths for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef)]
    changed = [function for function in functions if name in " ".join(map(ast.unparse, function.body))]
    assert len(changed) > 2, "tests that run on a CPU"
    marks = {function.name: " ".join(map(ast.unparse, function.decorator_list)) for function in changed}
    assert not {test: text for test, text in marks.items() if re.search("cuda|gpu", text, re.IGNORECASE)}


def test_no_test_changes_the_clock_of_all_threads() -> None:
    """A server that other tests share waits for hours in its loop, if it looks at such a clock. A module's name for
    `time` can be replaced."""
    pattern = re.compile(r'setattr\(\s*(?:(?:\w+\.)*time,\s*"|"time\.)')
    assert pattern.search('monkeypatch.setattr(module.time, "monotonic", clock)')
    assert pattern.search('setattr("time.time", clock)')
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")}
    del texts[Path(__file__).name]
    assert not [name for name, text in texts.items() if pattern.search(text)]


def find_unquoted_commands(module: ast.Module) -> list[str]:
    """f-strings with a command of lorgnette and a value in it that is not quoted for a shell."""
    found = []
    for node in ast.walk(module):
        if not isinstance(node, ast.JoinedStr):
            continue
        text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        if not re.search(r"lorgnette [a-z-]+( [^`,;:]*)?\{\}", text):
            continue
        start = text.index("lorgnette ")
        values = [part.value for part in node.values if isinstance(part, ast.FormattedValue)][
            text[:start].count("{}") :
        ]
        quoted = [
            (
                isinstance(value, ast.Call)
                and getattr(value.func, "id", getattr(value.func, "attr", "")).startswith("quote")
            )
            or (isinstance(value, ast.Name) and value.id in ("quoted", "merge"))
            for value in values
        ]
        if not all(quoted):
            found.append(text)
    return found


def test_values_in_printed_commands_are_quoted() -> None:
    assert [text for path in SOURCE.rglob("*.py") for text in find_unquoted_commands(parse(path))] == []
    assert find_unquoted_commands(ast.parse('f"resume it: lorgnette train --resume {path}"'))
    assert not find_unquoted_commands(ast.parse('f"resume it: lorgnette train --resume {quote_word(path)}"'))


@pytest.mark.parametrize("test", ["a first test", "the next test"])
def test_shapes_are_checked_in_every_test(test: str) -> None:
    """The calls of a test before do not count (conftest.py)."""
    with pytest.raises(jaxtyping.TypeCheckError):
        swiglu_reference(torch.zeros(2, 3, 4))
    for _ in range(20):
        assert swiglu_reference(torch.zeros(2, 4)).shape == (2, 2), test
