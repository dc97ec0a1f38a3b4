"""The checkpoint folder in the hub's layout, with a flat config.json like Qwen2-VL's own.

Knows nothing about training. Every program that loads Qwen2-VL from a folder loads this one.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from demo_model.tokenizer import VOCAB_SIZE, write_tokenizer
from lorgnette.io.atomic import atomic_write, write_json

HIDDEN = 256
PATCH = 14
MERGE = 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_SIDE = 112
"""Pixels. Images enter the model at 112×112 at most: 8×8 patches, 16 image tokens."""


def _build_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 704,
        "max_position_embeddings": 2048,
        "max_window_layers": 4,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 4,
            "embed_dim": 192,
            "mlp_ratio": 2,
            "num_heads": 3,
            "in_chans": 3,
            "hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vocab_size": VOCAB_SIZE,
    }


def _build_processor_config() -> dict[str, Any]:
    return {
        "min_pixels": (4 * PATCH) ** 2,
        "max_pixels": IMAGE_SIDE**2,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }


def make_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write the untrained model: random bf16 weights, all other files as shipped."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder)
    write_json(folder / "config.json", _build_config(ids))
    write_json(folder / "preprocessor_config.json", _build_processor_config())
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": False,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        },
    )
    torch.manual_seed(seed)
    save_weights(Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder)), folder)


def save_weights(model: Any, folder: Path) -> None:
    """Write model.safetensors in bf16 under transformers' tensor names, without the tied output layer.

    `model` keeps its own precision. transformers saves into a temporary folder, and only the weights are taken from
    it: the other files of the checkpoint are ours.
    """
    weights = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in model.state_dict().items()}
    del weights["lm_head.weight"]
    with tempfile.TemporaryDirectory() as temporary, atomic_write(folder / "model.safetensors") as path:
        model.save_pretrained(temporary, state_dict=weights)
        path.write_bytes((Path(temporary) / "model.safetensors").read_bytes())


def count_parameters(model: Any) -> int:
    """Return the number of parameters; a tied weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
