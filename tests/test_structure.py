"""The package's structure: every module is documented and tested, settings are few, shipped files have an origin."""

import ast
import random
import re
from pathlib import Path

import PIL.Image

from lorgnette import config
from lorgnette.demo.scenes import draw_scene, sample_scene

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorgnette"
TESTED_ELSEWHERE = {
    "__main__.py": "test_cli.py",
    "engine/base.py": "engine/test_fast.py",
    "inference/hf_generate.py": "inference/test_decode.py",
    "kernels/triton_import.py": "kernels/test_attention.py",
}
"""Module → the test file that covers it, if that is not the one at the same place with the same name."""


def test_every_module_has_a_docstring() -> None:
    modules = [path for folder in (SOURCE, ROOT / "tools", ROOT / "bench") for path in folder.rglob("*.py")]
    assert [path for path in modules if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


def test_every_module_has_a_test_file() -> None:
    untested = []
    for path in SOURCE.rglob("*.py"):
        module = path.relative_to(SOURCE)
        test = TESTED_ELSEWHERE.get(str(module), f"{module.parent}/test_{module.name}")
        if module.name != "__init__.py" and not (ROOT / "tests" / test).is_file():
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
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lorgnette.demo")
    }
    assert {name for name in importers if not name.startswith("demo/")} == {"commands/demo.py"}


def test_settings_are_few() -> None:
    assert len(config.list_settings()) <= 46


def test_shipped_files_have_an_origin() -> None:
    """The built-in model has a manifest; the image of the reference sample is the scene that tools/README.md names."""
    model = SOURCE / "demo" / "model"
    assert (model / "manifest.json").is_file()
    assert (model / "model.safetensors").stat().st_size <= 12_000_000
    scene = draw_scene(sample_scene(random.Random(20141))).resize((112, 112), PIL.Image.Resampling.BICUBIC)
    with PIL.Image.open(SOURCE / "verification" / "sample.png") as image:
        assert image.tobytes() == scene.tobytes()
