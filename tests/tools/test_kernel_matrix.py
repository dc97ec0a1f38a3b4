"""Every kernel fits every card, as compiled here without a GPU, and the page of it is up to date."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_matrix
import pytest
from kernel_launches import list_fast_sizes
from kernel_matrix import CARDS, KIB, WIDEST, Card, Need, Task, find_excess
from kernels_page import RESULTS, format_page
from triton_interpreter import NEEDS_TRITON

ROOT = Path(__file__).parents[2]
NEED_TENSOR_CORES = {
    "dropped_products:_add_dropped_products_kernel",
    "swiglu:_swiglu_project_kernel",
    "swiglu:_add_partials_kernel",
    "varlen_attention:_varlen_attention_kernel",
}
"""Triton has none of a T4, where torch multiplies instead."""
CONTROL = """
import json, sys
from dataclasses import replace
from pathlib import Path
import kernel_matrix as matrix
from lorgnette.kernels import tiles

matrix.import_triton()
problems = matrix.compile_largest(Path(sys.argv[1]), 1)
# Controls: tiles with a stage more than an RTX 30 has room for, and kernels that nothing launches.
tiles._BY_CAPABILITY[8, 6] = replace(tiles.find_tiles((8, 6)), num_stages=4)
sizes = [size for size in matrix.list_sizes() if matrix.name_size(size) == "Qwen2-VL-2B-Instruct"]
matrix.CARDS = {(8, 6): replace(matrix.CARDS[8, 6], dtypes=("float16",))}
task = next(task for task in matrix.list_tasks(sizes) if task.launch.kernel.endswith("_fwd_kernel"))
excess = matrix.find_excess(task, matrix.compile_launch(task))
print(json.dumps([problems, excess, matrix.explain_missing_kernels([task])]))
"""


def find_kernel_names() -> set[str]:
    """What Triton compiles, from the sources: needs no Triton."""
    return {
        f"{path.stem}:{node.name}"
        for path in (ROOT / "src" / "lorgnette" / "kernels").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)
    }


def test_the_matrix_has_every_kernel_every_model_and_every_card() -> None:
    results = json.loads(RESULTS.read_text())
    launches = results["launches"]
    assert set(results["functions"]) == find_kernel_names(), "run `make test-kernels`, then `make docs`"
    assert results["models"] == [*(size.names[0].partition("/")[2] for size in list_fast_sizes()), WIDEST]
    assert {name for launch in launches for name in launch["models"]} == {*results["models"]}
    cards = {kernel_matrix.format_capability(capability) for capability in CARDS}
    for kernel in {launch["kernel"] for launch in launches}:
        expected = cards - {"7.5"} if kernel in NEED_TENSOR_CORES else cards
        assert {card for launch in launches if launch["kernel"] == kernel for card in launch["needs"]} == expected


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert page == format_page(json.loads(RESULTS.read_text())), "run `make docs`"


@NEEDS_TRITON
def test_every_kernel_fits_every_card(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", CONTROL, str(RESULTS)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    problems, excess, missing = json.loads(result.stdout.splitlines()[-1])
    assert problems == []
    assert "of 99 KiB shared memory" in excess
    assert "swiglu:_swiglu_kernel: no model launches it" in missing
    assert not any("attention:_load_kv_block" in name for name in missing)  # the launched kernel calls it


@pytest.mark.parametrize(
    ("need", "excess"),
    [
        (Need(64 * KIB, 255, 256), None),
        (Need(64 * KIB + 1, 32, 0), "rotary:_rotary_kernel on 7.5: 64.0 of 64 KiB shared memory"),
        (Need(0, 255, 260), "rotary:_rotary_kernel on 7.5: 260 bytes a thread spilled, 256 allowed"),
    ],
)
def test_what_is_above_a_limit_is_named(need: Need, excess: str | None) -> None:
    task = Task(kernel_matrix.Launch("rotary:_rotary_kernel", (), (), (), ()), (7, 5))
    assert CARDS[7, 5] == Card("T4, RTX 20", 64, 256, ("float16", "float32"))
    assert find_excess(task, need) == excess
