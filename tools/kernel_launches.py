"""Records which Triton kernels the fast engine launches, and with what, for a model of any size on any card.

`lorgnette.inference.dry_run` runs the engine itself on tensors without memory, and `lorgnette.kernels.record_launches`
tells what it launches. So the list cannot differ from the engine.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorgnette.config import LoraSettings
from lorgnette.models.family import ModelSize
from lorgnette.models.registry import FAMILIES, find_unsupported_feature, parse_configs
from lorgnette.types import Capability

TRITON = Path(__file__).parents[1] / ".venv" / "triton"
"""Where `make` installs Triton if torch has none."""
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


def list_fast_sizes() -> list[ModelSize]:
    """The released models that the fast engine runs."""
    sizes = [size for family in FAMILIES.values() for size in family.sizes]
    return [size for size in sizes if find_unsupported_feature(size.config) is None]


def record_launches(size: ModelSize, dtype_name: str, capability: Capability) -> list[Launch]:
    """The launches of a model on a card, each once: training with and without dropout, answers, images, NF4."""
    import torch

    from lorgnette.inference import dry_run
    from lorgnette.kernels.record_launches import record_launches
    from lorgnette.models.adapter_shape import AdapterShape

    launches: dict[Launch, None] = {}

    def add(kernel: str, details: Mapping[str, Any]) -> None:
        attributes = tuple((path, json.dumps(value)) for path, value in details["configs"][0].items())
        options = tuple((name, details[name]) for name in _OPTIONS)
        signature, constants = tuple(details["signature"].items()), tuple(details["constants"].items())
        launches[Launch(kernel, signature, constants, attributes, options)] = None

    text, vision = parse_configs(size.config)
    shape, dtype = AdapterShape.from_settings(text, LoraSettings()), getattr(torch, dtype_name)
    with record_launches(capability, add):
        for dropout in (0.05, 0.0):
            dry_run.run_training(shape, dtype, dropout)
        dry_run.run_answers(shape, dtype, _SLOTS)
        dry_run.run_tower(vision, dtype)
        dry_run.run_nf4(text, shape.rank, dtype)
    return list(launches)
