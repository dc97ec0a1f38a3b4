"""Tiny random checkpoints of every family, in the hub's own names, with all the files of a real one."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import family_templates

ROPE = {"rope_type": "default", "rope_theta": 1e4}
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
LINEAR_ATTENTION = {
    "head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
VISION_3 = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 16,
    "num_position_embeddings": 36, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
}  # fmt: skip
VISIONS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_chans": 3,
    },
    "qwen2_5_vl": {
        "depth": 3, "hidden_size": 32, "intermediate_size": 60, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
        "tokens_per_second": 2, "hidden_act": "silu", "in_chans": 3,
    },
    "qwen3_vl": VISION_3 | {"deepstack_visual_indexes": [0, 2], "hidden_act": "gelu_pytorch_tanh"},
    "qwen3_vl_moe": VISION_3 | {"deepstack_visual_indexes": [0, 2], "hidden_act": "gelu_pytorch_tanh"},
    "qwen3_5": VISION_3 | {"deepstack_visual_indexes": [], "hidden_act": "gelu_pytorch_tanh"},
    "qwen3_5_moe": VISION_3 | {"deepstack_visual_indexes": [], "hidden_act": "gelu_pytorch_tanh"},
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 1e4},
    "qwen2_5_vl": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 1e4},
    # Heads wider than hidden_size / heads, as at 4B and 32B.
    "qwen3_vl": {
        "head_dim": 32, "attention_bias": False,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
        "rope_theta": 1e4,
    },
    "qwen3_5": LINEAR_ATTENTION
    | {
        "rope_parameters": {
            **ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25,
        }
    },
}  # fmt: skip
TEXTS["qwen3_vl_moe"] = TEXTS["qwen3_vl"] | EXPERTS
TEXTS["qwen3_5_moe"] = TEXTS["qwen3_5"] | EXPERTS | {"shared_expert_intermediate_size": 32}
IS_FLAT = ("qwen2_vl", "qwen2_5_vl")
CONTROL_IDS = {
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>", "eos_token_id": "<|im_end|>", "bos_token_id": "<|endoftext|>",
}  # fmt: skip


def build_config(model_type: str, ids: dict[str, int], rows: int, *, is_tied: bool) -> dict[str, Any]:
    """config.json in the layout of the family's hub files."""
    from lorgnette.models.registry import FAMILIES

    text = {**TEXT, **TEXTS[model_type], "vocab_size": rows, "tie_word_embeddings": is_tied}
    common = {
        "architectures": [FAMILIES[model_type].class_name], "model_type": model_type, "torch_dtype": "float32",
        "vision_config": VISIONS[model_type], "tie_word_embeddings": is_tied,
        **{name: ids[token] for name, token in CONTROL_IDS.items()},
    }  # fmt: skip
    return {**common, **text} if model_type in IS_FLAT else {**common, "text_config": text}


def write_newer_files(folder: Path, model_type: str) -> None:
    """The chat template of a later family, and its tokenizer.json: with thoughts, and Qwen3.5's pre-tokenization."""
    if model_type in IS_FLAT:
        return
    from transformers import AutoTokenizer
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

    from lorgnette.models.registry import FAMILIES

    family, config_path = FAMILIES[model_type], folder / "tokenizer_config.json"
    template = family_templates.THOUGHT_LAST if family.template_options else family_templates.WITHOUT_SYSTEM
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    config = json.loads(config_path.read_text()) | {"chat_template": template}
    names = {"<|quad_start|>": "<think>", "<|quad_end|>": "</think>"}
    for token in config["added_tokens_decoder"].values():
        token["special"] &= token["content"] not in names
        token["content"] = names.get(token["content"], token["content"])
    config["additional_special_tokens"] = [t for t in config["additional_special_tokens"] if t not in names]
    config_path.write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    if family.needs_tokenizer_json:
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = PRETOKENIZE_REGEX
        path.write_text(json.dumps(tokenizer))
        config_path.write_text(config_path.read_text().replace("Qwen2Tokenizer", "Qwen3_5Tokenizer"))
        # From them transformers would build the tokenizer of the families before.
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()


def write_small_files(folder: Path, model_type: str, *, is_tied: bool = True) -> None:
    """All files but the weights."""
    from lorgnette.resolve import BUILT_IN_MODEL

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"):
        shutil.copy(BUILT_IN_MODEL / name, folder)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids, rows = {token["content"]: int(id_) for id_, token in tokens.items()}, max(map(int, tokens)) + 1
    write_newer_files(folder, model_type)
    is_tied = is_tied and not model_type.endswith("_moe")
    (folder / "config.json").write_text(json.dumps(build_config(model_type, ids, rows, is_tied=is_tied)))
    is_first = model_type in IS_FLAT
    processing = {
        "patch_size": VISIONS[model_type]["patch_size"], "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073] if is_first else [0.5] * 3,
        "image_std": [0.26862954, 0.26130258, 0.27577711] if is_first else [0.5] * 3,
        "image_processor_type": "Qwen2VLImageProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids["<|im_end|>"]]}))


def write_tiny_checkpoint(folder: Path, model_type: str, *, is_tied: bool = True, seed: int = 0) -> Path:
    """A random model of 4 layers with weights large enough that attention is not uniform. Its tokenizer is the demo's.

    Weights have the names of the hub's files: transformers converts its own when it saves.
    """
    import torch
    import transformers

    from lorgnette.models.registry import FAMILIES

    folder.mkdir(parents=True)
    write_small_files(folder, model_type, is_tied=is_tied)
    torch.manual_seed(seed)
    class_name = FAMILIES[model_type].class_name
    config = getattr(transformers, class_name.replace("ForConditionalGeneration", "Config")).from_pretrained(folder)
    model = getattr(transformers, class_name)(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.08)
        elif "norm" in name or "ln_q" in name:  # so that a norm's weight is not a plain one
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
        else:
            parameter.data.add_(torch.randn(parameter.shape) * 0.05)
    saved_config = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(saved_config)  # the hub's layout, not today's
    return folder


def dequantize_with_bitsandbytes(packed: Any, state: Any) -> Any:
    """The weight, [out, in]. As one row: see `Nf4Linear.dequantize`."""
    from bitsandbytes.functional import dequantize_4bit

    row = copy.copy(state)
    row.shape = (1, math.prod(state.shape))
    return dequantize_4bit(packed, row).view(*state.shape)


def write_nf4_checkpoint(folder: Path, source: Path, *, has_double_quantization: bool = True) -> Path:
    """A copy of a checkpoint whose projections, and one matrix of the tower, are stored in bitsandbytes' NF4."""
    import torch
    from bitsandbytes.functional import quantize_4bit
    from safetensors.torch import load_file, save_file

    from lorgnette.models.family import convert_weight_name
    from lorgnette.models.quantization import QLORA, list_quantized_modules

    shutil.copytree(source, folder)
    path, quantized = folder / "model.safetensors", dict[str, Any]()
    for name, tensor in load_file(path).items():
        current = convert_weight_name(name)
        if list_quantized_modules(QLORA, [current]) or current == "model.visual.blocks.0.attn.qkv.weight":
            packed, state = quantize_4bit(tensor, quant_type="nf4", compress_statistics=has_double_quantization)
            parts = {f"{name}.{key}": part.contiguous() for key, part in state.as_dict(packed=True).items()}
            quantized |= {name: packed, **parts}
        else:
            quantized[name] = tensor
    save_file({name: torch.clone(tensor) for name, tensor in quantized.items()}, path, metadata={"format": "pt"})
    stored = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": has_double_quantization, "bnb_4bit_compute_dtype": "bfloat16",
        "llm_int8_skip_modules": ["lm_head", "merger"],
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    return folder
