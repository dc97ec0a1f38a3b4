"""Qwen2-VL's row of facts. Needs no torch."""

from lorgnette.models.family import Family
from lorgnette.models.qwen2_vl.weights import convert_weight_name

QWEN2_VL = Family(
    model_type="qwen2_vl",
    class_name="Qwen2VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    merger_linears=("mlp.0", "mlp.2"),
    feature_weight="model.visual.merger.mlp.2.weight",
    native_image_tokens=(4, 16384),  # 3,136 to 12,845,056 pixels
    convert_weight_name=convert_weight_name,
)
