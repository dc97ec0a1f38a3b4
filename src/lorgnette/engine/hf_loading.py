"""Weights from a checkpoint's folder into transformers' module, on one device, for the reference engine."""

from typing import TYPE_CHECKING

import torch

from lorgnette.engine.packed_attention import ATTENTION_NAME
from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_base_model(checkpoint: BaseCheckpoint, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
    """The model in evaluation mode with every weight frozen.

    Raises LorgnetteError where the files are broken, lack weights the model needs, or hold others.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # its remarks on loading are answered by `info` below
    transformers.utils.logging.disable_progress_bar()
    cls = getattr(transformers, checkpoint.family.class_name)
    try:
        model, info = cls.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            device_map={"": device} if device.type == "cuda" else None,
            attn_implementation={"text_config": ATTENTION_NAME, "vision_config": "sdpa"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken config.json or weight file raises nearly anything in there
        raise LorgnetteError(
            f"weights cannot be loaded: {str(error).strip().splitlines()[0]}",
            where=str(checkpoint.folder),
            hint="download the checkpoint again, whole",
        ) from error
    odd = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of another shape": sorted(name for name, *_ in info["mismatched_keys"]),
    }
    wrong = [name for names in odd.values() for name in names]
    if wrong:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in odd.items() if names)
        raise LorgnetteError(
            f"weights do not fit the model: {counts} ({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''})",
            where=str(checkpoint.folder),
            hint="download the checkpoint again, whole",
        )
    # The checkpoint's own sampling habits (Qwen2-VL's: temperature 0.01, top_k 1) would mix into every generate call.
    model.generation_config = transformers.GenerationConfig()
    return model.requires_grad_(False).eval()
