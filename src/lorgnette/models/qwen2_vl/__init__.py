"""Qwen2-VL: its facts; config, text decoder and vision tower are modules of this folder. Needs no torch."""

from lorgnette.models.family import Family

FAMILY = Family(
    model_type="qwen2_vl",
    class_name="Qwen2VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    merger_linears=("mlp.0", "mlp.2"),
    feature_weight="model.visual.merger.mlp.2.weight",
    native_image_tokens=(4, 16384),  # 3,136 to 12,845,056 pixels
)
