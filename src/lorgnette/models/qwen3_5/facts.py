"""Qwen3.5, 3.6 and 3.8, dense: their facts. Needs no torch."""

from dataclasses import replace

from lorgnette.models.family import ModelSize
from lorgnette.models.qwen3_vl import facts as qwen3_vl

_TOWERS = qwen3_vl.TOWERS | {"tiny": {"depth": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 3072}}


def build_size(
    names: str, tower: str, layers: int, hidden: int, heads: int, kv_heads: int, value_heads: int, *,
    mlp: dict[str, int], model_type: str = "qwen3_5", is_tied: bool = False,
) -> ModelSize:  # fmt: skip
    """names: without their owner. value_heads: of linear attention. mlp: as in `qwen3_vl.facts.build_size`."""
    text = {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": 256, "vocab_size": 248320, "rms_norm_eps": 1e-6,
        "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
        },
        **mlp,
    }  # fmt: skip
    vision = qwen3_vl.build_vision_config(_TOWERS[tower], [], hidden)
    config = {"model_type": model_type, "text_config": text, "vision_config": vision, "tie_word_embeddings": is_tied}
    return ModelSize(tuple(f"Qwen/{name}" for name in names.split()), config)


FAMILY = replace(
    qwen3_vl.FAMILY,  # the same tower without deepstack, and the same boxes
    model_type="qwen3_5",
    title="Qwen3.5",
    class_name="Qwen3_5ForConditionalGeneration",
    deepstack_linears=(),
    other_language_linears=tuple(
        f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
    ),
    template_options=(("enable_thinking", False),),
    can_pack=False,
    ignored_weights=("mtp.",),
    needs_tokenizer_json=True,
    sizes=(
        build_size(
            "Qwen3.5-0.8B Qwen3.5-0.8B-Base", "tiny", 24, 1024, 8, 2, 16, mlp={"intermediate_size": 3584}, is_tied=True
        ),
        build_size(
            "Qwen3.5-2B Qwen3.5-2B-Base", "small", 24, 2048, 8, 2, 16, mlp={"intermediate_size": 6144}, is_tied=True
        ),
        build_size(
            "Qwen3.5-4B Qwen3.5-4B-Base", "small", 32, 2560, 16, 4, 32, mlp={"intermediate_size": 9216}, is_tied=True
        ),
        build_size("Qwen3.5-9B Qwen3.5-9B-Base", "large", 32, 4096, 16, 4, 32, mlp={"intermediate_size": 12288}),
        build_size(
            "Qwen3.5-27B Qwen3.6-27B Qwen3.8-27B", "large", 64, 5120, 24, 4, 48, mlp={"intermediate_size": 17408}
        ),
    ),
)
