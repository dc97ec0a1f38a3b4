"""Qwen2.5-VL: its facts. Needs no torch."""

from lorgnette.models.family import Family

FAMILY = Family(
    model_type="qwen2_5_vl",
    title="Qwen2.5-VL",
    class_name="Qwen2_5_VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    merger_linears=("merger.mlp.0", "merger.mlp.2"),
    feature_weight="model.visual.merger.mlp.2.weight",
    native_image_tokens=(4, 16384),  # 3,136 to 12,845,056 pixels
    box_scale="resized pixels",
    box_format="json",
    hub_names=tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
)
