"""The house keeps its own rules: sizes, names, a test file for every module, few settings."""

import ast
from pathlib import Path

import pytest

from lorgnette import config

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorgnette"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
FILES = sorted(path for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*.py"))
KINDS = {"utils", "util", "core", "common", "helpers", "helper", "managers", "manager", "misc", "base"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno and f.end_lineno - f.lineno >= 60}
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_its_test_file(path: Path) -> None:
    within = path.relative_to(SOURCE)
    assert (ROOT / "tests" / within.parent / f"test_{within.name}").is_file()


@pytest.mark.parametrize("path", [SOURCE / "__init__.py", *SOURCE.glob("*/__init__.py"), *MODULES], ids=name)
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_rooms_are_stages_never_kinds() -> None:
    assert not KINDS & {path.stem for path in SOURCE.rglob("*")}


def test_settings_stay_few() -> None:
    assert len(config.list_settings()) <= 46


def test_what_ships_says_where_it_came_from() -> None:
    manifest = SOURCE / "demo" / "model" / "manifest.json"
    assert manifest.is_file()
    assert (manifest.parent / "model.safetensors").stat().st_size <= 12_000_000
