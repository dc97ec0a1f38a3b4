"""Kernels in Triton's interpreter, on the CPU, equal their references: `interpret()` of the other modules here."""

from pathlib import Path

from triton_interpreter import NEEDS_TRITON, run_interpreted

HERE = Path(__file__).parent


@NEEDS_TRITON
def test_interpreted_kernels_equal_their_references() -> None:
    modules = [path for path in sorted(HERE.glob("test_*.py")) if "\ndef interpret(" in path.read_text()]
    assert len(modules) > 1
    result = run_interpreted(modules)
    assert result.returncode == 0, result.stderr
