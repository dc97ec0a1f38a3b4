"""Qwen2-VL: its facts. Needs no torch."""

from typing import Any

from lorgnette.models.family import Family, ModelSize


def build_text_config(
    model_type: str, layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocabulary: int, *, is_tied: bool
) -> dict[str, Any]:
    """The decoder's part of config.json; Qwen2.5-VL has the same."""
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "tie_word_embeddings": is_tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }


def _build_size(size: str, *sizes: int, is_tied: bool = False) -> ModelSize:
    vision = {
        "depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": sizes[1], "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    names = tuple(f"Qwen/Qwen2-VL-{size}{kind}" for kind in ("-Instruct", ""))
    return ModelSize(names, build_text_config("qwen2_vl", *sizes, is_tied=is_tied) | {"vision_config": vision})


FAMILY = Family(
    model_type="qwen2_vl",
    title="Qwen2-VL",
    class_name="Qwen2VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    merger_linears=("merger.mlp.0", "merger.mlp.2"),
    native_image_tokens=(4, 16384),  # 3,136 to 12,845,056 pixels
    box_scale="thousandths",
    box_format="tokens",
    sizes=(
        _build_size("2B", 28, 1536, 12, 2, 8960, 151936, is_tied=True),
        _build_size("7B", 28, 3584, 28, 4, 18944, 152064),
        _build_size("72B", 80, 8192, 64, 8, 29568, 152064),
    ),
)
