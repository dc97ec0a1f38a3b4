"""Base and adapter as one checkpoint, in the base's own layout."""

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder
from lorgnette.models.base_checkpoint import BaseCheckpoint

if TYPE_CHECKING:
    from peft import PeftModel

_NOT_COPIED = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "manifest.json")
"""Weights in any form, and how the base came about: both are the base's alone."""


def write_merged_checkpoint(model: "PeftModel", checkpoint: BaseCheckpoint, out: Path) -> None:
    """Add the adapter into the weights (W + scale · B · A) and write them as the base has them: shard by shard, each
    tensor under the base's name in the base's dtype, tied ones once. Tensors that are not adapted keep their bits, and
    all other files (config, tokenizer, template, processor) are copied as they are.

    The model is used up. It should be in float32: then the sum is rounded once, in writing.
    """
    merged: Any = model.merge_and_unload(safe_merge=True)
    state: dict[str, torch.Tensor] = merged.state_dict()
    with atomic_folder(out) as beside:
        for shard in checkpoint.weight_files:
            with safe_open(shard, framework="pt") as base:
                names = base.keys()
                tensors = {name: _cast_to_base(state, name, base.get_tensor(name).dtype, shard) for name in names}
            save_file(tensors, beside / shard.name, metadata={"format": "pt"})
        for path in checkpoint.folder.iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
                shutil.copyfile(path, beside / path.name)


def find_stored_dtype(checkpoint: BaseCheckpoint) -> str:
    """What most tensors of the checkpoint's first file are stored in, in safetensors' words: BF16, F32, …"""
    with safe_open(checkpoint.weight_files[0], framework="pt") as base:
        names = base.keys()
        counted: Counter[str] = Counter(base.get_slice(name).get_dtype() for name in names)
    return counted.most_common(1)[0][0]


def _cast_to_base(state: dict[str, torch.Tensor], name: str, dtype: torch.dtype, shard: Path) -> torch.Tensor:
    found = state.get(name, state.get(_current_name(name)))
    if found is None:
        raise LorgnetteError(
            f"the model has no tensor for {name}", where=str(shard), hint="download the checkpoint again, whole"
        )
    return found.to(dtype).contiguous()


def _current_name(name: str) -> str:
    """The hub's Qwen2-VL has its decoder at `model.` and its tower at `visual.`; transformers, since 4.52, one level
    down."""
    decoder = name.startswith("model.")
    return name.replace("model.", "model.language_model.", 1) if decoder else f"model.{name}"
