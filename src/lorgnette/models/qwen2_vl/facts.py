"""Qwen2-VL: its facts. Needs no torch."""

from lorgnette.models.family import Family

FAMILY = Family(
    model_type="qwen2_vl",
    title="Qwen2-VL",
    class_name="Qwen2VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    merger_linears=("merger.mlp.0", "merger.mlp.2"),
    feature_weight="model.visual.merger.mlp.2.weight",
    native_image_tokens=(4, 16384),  # 3,136 to 12,845,056 pixels
    box_scale="thousandths",
    box_format="tokens",
    hub_names=tuple(f"Qwen/Qwen2-VL-{size}{kind}" for size in ("2B", "7B", "72B") for kind in ("-Instruct", "")),
)
