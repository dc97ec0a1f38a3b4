"""Qwen3-VL, dense: its facts. Needs no torch."""

from typing import Any

from lorgnette.models.family import Family, ModelSize

TOWERS = {
    "small": {"depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096},
    "large": {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304},
}
_DEEPSTACK = {"small": [5, 11, 17], "large": [8, 16, 24]}


def build_vision_config(blocks: dict[str, int], deepstack: list[int], features: int) -> dict[str, Any]:
    """The tower's part of config.json; Qwen3.5 has the same without deepstack."""
    return {
        **blocks, "out_hidden_size": features, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": deepstack, "hidden_act": "gelu_pytorch_tanh",
    }  # fmt: skip


def build_size(
    size: str, tower: str, layers: int, hidden: int, heads: int, kv_heads: int, *,
    mlp: dict[str, int], model_type: str = "qwen3_vl", is_tied: bool = False,
) -> ModelSize:  # fmt: skip
    """mlp: the sizes of the MLP, dense or of experts, under their names in config.json."""
    text = {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]}, **mlp,
    }  # fmt: skip
    vision = build_vision_config(TOWERS[tower], _DEEPSTACK[tower], hidden)
    names = tuple(f"Qwen/Qwen3-VL-{size}-{kind}" for kind in ("Instruct", "Thinking"))
    config = {"model_type": model_type, "text_config": text, "vision_config": vision, "tie_word_embeddings": is_tied}
    return ModelSize(names, config)


FAMILY = Family(
    model_type="qwen3_vl",
    title="Qwen3-VL",
    class_name="Qwen3VLForConditionalGeneration",
    vision_linears=("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
    merger_linears=("merger.linear_fc1", "merger.linear_fc2"),
    deepstack_linears=("linear_fc1", "linear_fc2"),
    native_image_tokens=(64, 16384),  # 65,536 to 16,777,216 pixels
    box_scale="thousandths",
    box_format="json",
    sizes=(
        build_size("2B", "small", 28, 2048, 16, 8, mlp={"intermediate_size": 6144}, is_tied=True),
        build_size("4B", "small", 36, 2560, 32, 8, mlp={"intermediate_size": 9728}, is_tied=True),
        build_size("8B", "large", 36, 4096, 32, 8, mlp={"intermediate_size": 12288}),
        build_size("32B", "large", 64, 5120, 64, 8, mlp={"intermediate_size": 25600}),
    ),
)
