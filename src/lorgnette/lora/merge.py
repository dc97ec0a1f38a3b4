"""Writes base model and adapter as one checkpoint with the base's file layout."""

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.family import convert_weight_name

if TYPE_CHECKING:
    from peft import PeftModel

_NOT_COPIED = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "manifest.json")
"""The base's weights in any format, and the record of its training."""


def write_merged_checkpoint(model: "PeftModel", checkpoint: BaseCheckpoint, folder: Path) -> None:
    """Add the adapter to the weights (W + scale · B · A) and write them shard by shard, as the base has them.

    Each tensor keeps the base's name and dtype, tied ones are written once, and unadapted ones keep their bits. All
    other files (config, tokenizer, template, processor) are copied. The model cannot be used afterwards. It should be
    in float32, so that the sum is rounded only once, when it is written.
    """
    merged: Any = model.merge_and_unload(safe_merge=True)
    state: dict[str, torch.Tensor] = merged.state_dict()
    with atomic_folder(folder) as temporary:
        for shard in checkpoint.weight_files:
            with safe_open(shard, framework="pt") as base:
                names, tensors = base.keys(), {}
                for name in names:
                    tensor = state.get(name, state.get(convert_weight_name(name)))
                    if tensor is None:
                        message = f"the model has no tensor for {name}"
                        raise LorgnetteError(message, where=str(shard), hint=DOWNLOAD_AGAIN)
                    tensors[name] = tensor.to(base.get_tensor(name).dtype).contiguous()
            save_file(tensors, temporary / shard.name, metadata={"format": "pt"})
        for path in checkpoint.folder.iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
                shutil.copyfile(path, temporary / path.name)


def find_stored_dtype(checkpoint: BaseCheckpoint) -> str:
    """The dtype of most tensors in the first weight file, in safetensors' words: BF16, F32, …"""
    with safe_open(checkpoint.weight_files[0], framework="pt") as base:
        names = base.keys()
        dtypes = Counter(base.get_slice(name).get_dtype() for name in names)
    return str(dtypes.most_common(1)[0][0])
