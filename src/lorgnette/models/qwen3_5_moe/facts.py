"""Qwen3.5, 3.6 and 3.8 with a mixture of experts: their facts. Needs no torch."""

from dataclasses import replace

from lorgnette.models.family import ModelSize
from lorgnette.models.qwen3_5 import facts


def _build_size(
    names: str, layers: int, hidden: int, heads: int, value_heads: int, expert: int, num_experts: int, num_active: int
) -> ModelSize:
    sizes = {
        "moe_intermediate_size": expert, "shared_expert_intermediate_size": expert, "num_experts": num_experts,
        "num_experts_per_tok": num_active,
    }  # fmt: skip
    return facts.build_size(names, "large", layers, hidden, heads, 2, value_heads, mlp=sizes, model_type="qwen3_5_moe")


FAMILY = replace(
    facts.FAMILY,
    model_type="qwen3_5_moe",
    title="Qwen3.5-MoE",
    class_name="Qwen3_5MoeForConditionalGeneration",
    expert_linears=("gate_proj", "up_proj", "down_proj"),
    other_language_linears=(
        *facts.FAMILY.other_language_linears,
        *(f"mlp.shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    ),
    sizes=(
        _build_size("Qwen3.5-35B-A3B Qwen3.6-35B-A3B Qwen3.5-35B-A3B-Base", 40, 2048, 16, 32, 512, 256, 8),
        _build_size("Qwen3.5-122B-A10B", 48, 3072, 32, 64, 1024, 256, 8),
        _build_size("Qwen3.5-397B-A17B", 60, 4096, 32, 64, 1024, 512, 10),
    ),
)
