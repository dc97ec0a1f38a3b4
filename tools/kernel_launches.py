"""Records which Triton kernels the fast engine launches, and with what, for a model of any size on any card.

The engine itself runs: training steps, evaluation, generation and the vision tower, on tensors without memory ("meta")
that say they are on a GPU. Triton's hook sees each launch that it would compile and stops it. So the list cannot differ
from the engine: shapes, constants and options are its own.
"""

import importlib
import importlib.util
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lorgnette.kernels
from lorgnette.config import LoraSettings
from lorgnette.models.family import ModelSize
from lorgnette.models.registry import FAMILIES, find_unsupported_feature, parse_configs
from lorgnette.types import Capability, Image, ImageGrid

TRITON = Path(__file__).parents[1] / ".venv" / "triton"
"""Where `make` installs Triton if torch has none."""
_TOKENS, _LAST_TOKENS, _LABELS = 512, 128, 256
_SLOTS = (256, 1024)
"""Of a KV cache: its attention in one part, and in several."""
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "enable_fp_fusion")


@dataclass(frozen=True, slots=True)
class Launch:
    """What Triton compiles: a kernel with the types, alignment and constants of its arguments.

    kernel: "module:function". signature: the type of each argument. attributes: by the path of an argument.
    """

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    attributes: tuple[tuple[tuple[int, ...], str], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def dtype(self) -> str:
        """Of the model: the half precision among the arguments, if there is one."""
        types = {name.lstrip("*") for _, name in self.signature}
        return next((name for name in ("bf16", "fp16") if name in types), "fp32")

    def list_constants(self) -> dict[str, Any]:
        """Constants by the names of their arguments."""
        return {self.signature[path[0]][0]: value for path, value in self.constants}


def import_triton() -> Any:
    """Triton of its own folder, else of the environment; before lorgnette's kernels. Raises ImportError."""
    sys.path.insert(0, str(TRITON))
    return importlib.import_module("triton")


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


def list_fast_sizes() -> list[ModelSize]:
    """The released models that the fast engine runs."""
    sizes = [size for family in FAMILIES.values() for size in family.sizes]
    return [size for size in sizes if find_unsupported_feature(size.config) is None]


def record_launches(size: ModelSize, dtype_name: str, capability: Capability) -> list[Launch]:
    """The launches of a model on a card, each once."""
    import torch

    with torch.no_grad(), _recording(capability) as launches:
        _run_decoder(size, getattr(torch, dtype_name))
        _run_tower(size, getattr(torch, dtype_name))
        _run_nf4(size, getattr(torch, dtype_name))
    return list(dict.fromkeys(launches))


def _run_decoder(size: ModelSize, dtype: Any) -> None:
    """A training step with and without dropout, evaluation, and a step of generation."""
    import torch

    from lorgnette.engine.batch_shapes import BatchShape
    from lorgnette.engine.cuda_graphs import StaticInputs
    from lorgnette.engine.fast import FastEngine
    from lorgnette.engine.loading import allocate_decoder
    from lorgnette.inference.generator import Generator
    from lorgnette.inference.kv_cache import CacheShape, KVCache
    from lorgnette.lora.flat_params import FlatLoraParams
    from lorgnette.models.adapter_shape import AdapterShape

    device, features = torch.device("meta"), Any
    text, _ = parse_configs(size.config)
    shape = AdapterShape.from_settings(replace(text, num_layers=2), LoraSettings())
    decoder, _ = allocate_decoder(shape, device, dtype)
    for dropout in (0.05, 0.0):
        engine = FastEngine(decoder, FlatLoraParams(shape, device), features, dropout=dropout)  # type: ignore[arg-type]
        engine.sync_weights()
        inputs = StaticInputs(BatchShape(_TOKENS, _LAST_TOKENS, _LABELS), decoder)
        engine._forward_backward(inputs)
    decoder.compute_losses(decoder.forward(inputs.x, inputs.batch, None, recompute_layers=2))
    generator = Generator(decoder, features)  # type: ignore[arg-type]
    for slots in _SLOTS:
        generator._run_decode_step(KVCache.from_config(CacheShape(8, slots), decoder.config, device, dtype), True, None)


def _run_tower(size: ModelSize, dtype: Any) -> None:
    """One block over one image, and the levels behind it."""
    import torch

    from lorgnette.models.networks import find_tower_class

    _, vision = parse_configs(size.config)
    vision = replace(vision, depth=1, deepstack_blocks=(0,) if vision.deepstack_blocks else ())
    tower_class, device = find_tower_class(vision.model_type), torch.device("meta")
    weights, _ = tower_class.allocate_weights(vision, device, dtype)
    side = 8 * vision.merge_size
    grid = ImageGrid(Image(Path("image")), 1, side, side, vision.merge_size)
    tower_class(vision, weights)([grid], torch.empty(side**2, vision.patch_dim, device=device, dtype=dtype))


def _run_nf4(size: ModelSize, dtype: Any) -> None:
    """Every matrix of a layer, from its values to NF4 and back."""
    import torch

    from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4, quantize_nf4

    text, _ = parse_configs(size.config)
    device, rank = torch.device("meta"), LoraSettings().rank
    for rows, columns in text.linear_shapes.values():
        values = torch.empty(rows, columns, device=device, dtype=dtype)
        for is_nested in (False, True):
            matrix = Nf4Matrix.allocate((rows, columns), device, is_nested=is_nested)
            dequantize_nf4(matrix, torch.empty(rows, columns + rank, device=device, dtype=dtype)[:, :columns])
        plain = Nf4Matrix.allocate((rows, columns), device, is_nested=False)
        quantize_nf4(values, plain.packed, plain.absmax)


@contextmanager
def _recording(capability: Capability) -> Iterator[list[Launch]]:
    """Launches go into the list, and tensors without memory are the GPU's."""
    import torch
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    launches: list[Launch] = []

    def record(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        attributes = tuple((path, json.dumps(value)) for path, value in compile["configs"][0].items())
        options = tuple((name, compile[name]) for name in _OPTIONS)
        signature, constants = tuple(compile["signature"].items()), tuple(compile["constants"].items())
        launches.append(Launch(name_kernel(fn.jit_function), signature, constants, attributes, options))
        return True  # do not compile

    class Driver:
        """What Triton asks of a GPU. The target is any: what is recorded does not depend on it."""

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 80, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return device

    def take_queries(qkv: Any, plan: Any, num_heads: tuple[int, int]) -> Any:
        """A result of the right shape."""
        (H, K), M = num_heads, len(plan.query_indices)
        return qkv[:M, : qkv.shape[1] // (H + 2 * K) * H]

    driver.set_active(Driver())
    with ExitStack() as patches:
        patches.enter_context(patch.object(torch.Tensor, "is_cuda", True))
        patches.enter_context(patch("torch.cuda.get_device_capability", lambda _=None: capability))
        # torch's own operations. Not every form of them takes such tensors, and their results do not matter.
        patches.enter_context(patch("lorgnette.kernels.attention.attention_reference", take_queries))
        for name in ("mm", "addmm", "baddbmm"):
            patches.enter_context(patch.object(torch, name, _skip_with_out(getattr(torch, name))))
        patches.enter_context(patch.object(knobs.runtime, "jit_cache_hook", record))
        yield launches


def _skip_with_out(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation, which does nothing where the caller has memory for the result."""

    def skip(*arguments: Any, out: Any = None, **options: Any) -> Any:
        return operation(*arguments, **options) if out is None else out

    return skip
