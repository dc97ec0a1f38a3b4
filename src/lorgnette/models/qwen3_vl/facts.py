"""Qwen3-VL, dense: its facts. Needs no torch."""

from lorgnette.models.family import Family

FAMILY = Family(
    model_type="qwen3_vl",
    title="Qwen3-VL",
    class_name="Qwen3VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
    merger_linears=("merger.linear_fc1", "merger.linear_fc2"),
    deepstack_linears=("linear_fc1", "linear_fc2"),
    feature_weight="model.visual.merger.linear_fc2.weight",
    native_image_tokens=(64, 16384),  # 65,536 to 16,777,216 pixels
    box_scale="thousandths",
    box_format="json",
    hub_names=tuple(
        f"Qwen/Qwen3-VL-{size}-{kind}" for size in ("2B", "4B", "8B", "32B") for kind in ("Instruct", "Thinking")
    ),
)
