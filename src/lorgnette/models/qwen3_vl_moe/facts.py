"""Qwen3-VL with a mixture of experts: its facts. Needs no torch."""

from dataclasses import replace

from lorgnette.models.family import ModelSize
from lorgnette.models.qwen3_vl import facts


def _build_size(size: str, layers: int, hidden: int, heads: int, mlp: int, expert: int) -> ModelSize:
    sizes = {"intermediate_size": mlp, "moe_intermediate_size": expert, "num_experts": 128, "num_experts_per_tok": 8}
    return facts.build_size(size, "large", layers, hidden, heads, 4, mlp=sizes, model_type="qwen3_vl_moe")


FAMILY = replace(
    facts.FAMILY,
    model_type="qwen3_vl_moe",
    title="Qwen3-VL-MoE",
    class_name="Qwen3VLMoeForConditionalGeneration",
    expert_linears=("gate_proj", "up_proj", "down_proj"),
    sizes=(
        _build_size("30B-A3B", 48, 2048, 32, 6144, 768),
        _build_size("235B-A22B", 94, 4096, 64, 12288, 1536),
    ),
)
