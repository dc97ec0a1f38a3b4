"""Qwen2.5-VL: its facts. Needs no torch."""

from lorgnette.models.family import Family, ModelSize
from lorgnette.models.qwen2_vl.facts import build_text_config


def _build_size(size: str, *sizes: int, vision_mlp: int = 3420, is_tied: bool = False) -> ModelSize:
    vision = {
        "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": vision_mlp, "out_hidden_size": sizes[1],
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu",
    }  # fmt: skip
    config = build_text_config("qwen2_5_vl", *sizes, is_tied=is_tied) | {"vision_config": vision}
    return ModelSize((f"Qwen/Qwen2.5-VL-{size}-Instruct",), config)


FAMILY = Family(
    model_type="qwen2_5_vl",
    title="Qwen2.5-VL",
    class_name="Qwen2_5_VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    merger_linears=("merger.mlp.0", "merger.mlp.2"),
    native_image_tokens=(4, 16384),  # 3,136 to 12,845,056 pixels
    box_scale="resized pixels",
    box_format="json",
    sizes=(
        _build_size("3B", 36, 2048, 16, 2, 11008, 151936, is_tied=True),
        _build_size("7B", 28, 3584, 28, 4, 18944, 152064),
        _build_size("32B", 64, 5120, 40, 8, 27648, 152064, vision_mlp=3456),
        _build_size("72B", 80, 8192, 64, 8, 29568, 152064, vision_mlp=3456),
    ),
)
