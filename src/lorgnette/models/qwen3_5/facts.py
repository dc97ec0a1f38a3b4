"""Qwen3.5, 3.6 and 3.8, dense: their facts. Needs no torch."""

from lorgnette.models.family import Family

FAMILY = Family(
    model_type="qwen3_5",
    title="Qwen3.5",
    class_name="Qwen3_5ForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
    merger_linears=("merger.linear_fc1", "merger.linear_fc2"),
    feature_weight="model.visual.merger.linear_fc2.weight",
    native_image_tokens=(64, 16384),  # 65,536 to 16,777,216 pixels
    box_scale="thousandths",
    box_format="json",
    other_language_linears=tuple(
        f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
    ),
    template_options=(("enable_thinking", False),),
    can_pack=False,
    ignored_weights=("mtp.",),
    needs_tokenizer_json=True,
    hub_names=(
        *(f"Qwen/Qwen3.5-{size}" for size in ("0.8B", "2B", "4B", "9B", "27B")),
        "Qwen/Qwen3.6-27B",
    ),
)
