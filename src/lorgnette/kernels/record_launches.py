"""Records which Triton kernels a computation launches, and with what, without a GPU; compiles them from the record.

The computation runs on tensors without memory ("meta") that say they are on a GPU. Triton's hook sees each launch that
it would compile and stops it. So the record cannot differ from the code: shapes, constants and options are its own.
Only processes that do nothing else call it: torch and Triton change for all of their code.
"""

import importlib
import operator
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

import lorgnette.kernels
from lorgnette.types import Capability

WARP_SIZE = 32
PLAIN_MODULES: dict[str, dict[str, Any]] = {
    "torch._dynamo": {"disable": lambda function, *_, **__: function},
    "torch.fx.experimental.symbolic_shapes": {
        **dict.fromkeys(("guard_or_false", "guard_or_true", "guard_size_oblivious", "statically_known_true"), bool),
        "expect_true": lambda condition, *_: condition, "sym_and": lambda *terms: all(terms),
        "sym_or": lambda *terms: any(terms), "sym_eq": operator.eq, "is_nested_int": lambda _: False,
        **dict.fromkeys(("has_guarding_hint", "has_hint"), lambda _: True),
        **dict.fromkeys(("guarding_hint_or_throw", "size_hint"), lambda size, **_: size),
        "free_unbacked_symbols": lambda _: set[Any](),
    },
    "sympy": dict.fromkeys(("Basic", "Expr", "Integer", "Number", "Symbol"), type("NoNumber", (), {})),
}  # fmt: skip
"""What torch asks of its compiler for a tensor without memory, for sizes that are known: to import the compiler and
SymPy takes as long as all of torch."""
OnLaunch = Callable[[str, Mapping[str, Any]], None]
"""on_launch(kernel, details): the kernel's name as of `find_kernels`, and what Triton's hook tells of the launch."""


class CompileDriver:
    """What Triton asks of a GPU before it compiles, answered without one."""

    def __init__(self, capability: Capability) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        major, minor = self.capability
        return GPUTarget("cuda", 10 * major + minor, WARP_SIZE)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@cache
def find_kernels() -> dict[str, Any]:
    """All functions of lorgnette.kernels that Triton compiles, by "module:function"."""
    from triton.runtime.jit import JITFunction

    names = [info.name for info in pkgutil.iter_modules(lorgnette.kernels.__path__)]
    modules = [importlib.import_module(f"lorgnette.kernels.{name}") for name in names]
    values = [value for module in modules for value in vars(module).values()]
    return {name_kernel(value): value for value in values if isinstance(value, JITFunction)}


def name_kernel(function: Any) -> str:
    return f"{function.module.removeprefix('lorgnette.kernels.')}:{function.fn.__name__}"


@contextmanager
def record_launches(capability: Capability, on_launch: OnLaunch) -> Iterator[None]:
    """Tell on_launch of each launch inside; nothing is launched or compiled. Equal launches are told again."""
    from triton import knobs
    from triton.runtime import driver

    def record(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        on_launch(name_kernel(fn.jit_function), compile)
        return True  # do not compile

    driver.set_active(CompileDriver(capability))
    with pretend_gpu(capability), patch.object(knobs.runtime, "jit_cache_hook", record):
        yield


@contextmanager
def pretend_gpu(capability: Capability) -> Iterator[None]:
    """Tensors say that they are on a GPU inside, and torch's products do nothing where tensors have no memory."""

    import torch

    def take_queries(qkv: Any, plan: Any, num_heads: tuple[int, int]) -> Any:
        """A result of the right shape."""
        (H, K), M = num_heads, len(plan.query_indices)
        return qkv[:M, : qkv.shape[1] // (H + 2 * K) * H]

    with torch.no_grad(), ExitStack() as patches:
        for name, values in PLAIN_MODULES.items():
            patches.enter_context(_stand_in(name, values))
        patches.enter_context(patch.object(torch.Tensor, "is_cuda", True))
        patches.enter_context(patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor))
        patches.enter_context(patch("torch.cuda.get_device_capability", lambda _=None: capability))
        # torch's own operations. Not every form of them takes such tensors, and their results do not matter.
        patches.enter_context(patch("lorgnette.kernels.attention.attention_reference", take_queries))
        for name in ("mm", "addmm", "baddbmm"):
            patches.enter_context(patch.object(torch, name, _skip_with_out(getattr(torch, name))))
        yield


def prepare_compiler(capabilities: Iterable[Capability]) -> None:
    """Compute what every process that is forked to compile needs: hashes of Triton, its programs' versions."""
    from triton.backends.nvidia.driver import library_dirs
    from triton.compiler import make_backend
    from triton.runtime.cache import triton_key

    triton_key()
    library_dirs()
    for capability in capabilities:
        make_backend(CompileDriver(capability).get_current_target()).hash()


def compile_launch(kernel: str, specialization_data: str, capability: Capability) -> None:
    """Compile a recorded launch, and the C function that launches it, into Triton's cache.

    specialization_data: of the details that `record_launches` tells. Triton derives the cache's keys from it as at the
    launch. Needs the libcuda of a driver to link with, but no GPU.
    """
    from triton.backends.nvidia.driver import CudaLauncher
    from triton.runtime import driver

    driver.set_active(CompileDriver(capability))
    compiled = find_kernels()[kernel].preload(specialization_data)
    CudaLauncher(compiled.src, compiled.metadata)


@contextmanager
def _stand_in(name: str, values: Mapping[str, Any]) -> Iterator[None]:
    """A module of these values inside, unless it is imported already. Asked for more it imports the real one."""
    if name in sys.modules:
        yield
        return

    def find(attribute: str) -> Any:
        if attribute.startswith("__"):  # of a package, for instance
            raise AttributeError(attribute)
        if sys.modules[name] is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in = ModuleType(name)
    stand_in.__dict__.update(values, __getattr__=find)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules[name] is stand_in:
            del sys.modules[name]


def compile_driver() -> None:
    """Compile the C functions with which Triton loads a kernel."""
    from triton.backends.nvidia.driver import CudaUtils

    CudaUtils()


def _skip_with_out(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation, which does nothing where the caller has memory for the result."""

    def skip(*arguments: Any, out: Any = None, **options: Any) -> Any:
        return operation(*arguments, **options) if out is None else out

    return skip
