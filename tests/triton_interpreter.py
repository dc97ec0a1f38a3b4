"""Runs `interpret()` of test modules with Triton's interpreter: kernels run on the CPU, and no GPU is needed.

    python tests/triton_interpreter.py tests/kernels/test_lora_grads.py

In float16 alone: the interpreter holds bfloat16 as integers and multiplies them.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[1]
TRITON = ROOT / ".venv" / "triton"
NEEDS_TRITON = pytest.mark.skipif(
    not TRITON.is_dir() and importlib.util.find_spec("triton") is None, reason="needs Triton: `make test` installs it"
)


def run_interpreted(modules: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton decides at its import whether it interprets."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TRITON), *sys.path]),
    }
    command = [sys.executable, __file__, *map(str, modules)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """Tensors say that they are on an H100, so that kernels are launched for them."""
    import torch

    with ExitStack() as patches:
        patches.enter_context(patch.object(torch.Tensor, "is_cuda", True))
        patches.enter_context(patch("torch.cuda.get_device_capability", lambda _=None: (9, 0)))
        yield


def _accept_loop_bounds() -> None:
    """The interpreter converts a loop's bound with int(array), which NumPy takes of arrays without dimensions alone."""
    from triton.runtime import interpreter

    patch_tensor: Callable[..., None] = interpreter._patch_lang_tensor

    def patch_and_convert(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_convert


if __name__ == "__main__":
    _accept_loop_bounds()
    for path in map(Path, sys.argv[1:]):
        sys.path.insert(0, str(path.parent))
        importlib.import_module(path.stem).interpret()
