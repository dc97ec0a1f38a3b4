"""Base and adapter as one checkpoint, in the hub's own layout."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorgnette.files import folder_whole
from lorgnette.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from peft import PeftModel

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pth")


def merge(model: "PeftModel", checkpoint: Checkpoint, out: Path) -> None:
    """Add the adapter into the weights (W + scale · B · A), write them to `out` in the checkpoint's own dtype, beside
    its other files copied as they are: config, tokenizer, template and processor stay those the model came with.

    The model is used up. It should be in float32: then the sum is rounded once, in writing.
    """
    merged: Any = model.merge_and_unload(safe_merge=True)
    merged.to(_dtype(checkpoint))
    with folder_whole(out) as beside:
        merged.save_pretrained(beside)
        for path in beside.iterdir():
            if not _is_weights(path):
                path.unlink()  # transformers' own writing of config.json; the checkpoint's is taken
        for path in checkpoint.folder.iterdir():
            if path.is_file() and not _is_weights(path):
                shutil.copyfile(path, beside / path.name)


def _is_weights(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _WEIGHTS)


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    named: torch.dtype = getattr(torch, config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    return named
