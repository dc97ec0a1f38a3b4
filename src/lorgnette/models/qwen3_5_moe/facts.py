"""Qwen3.5, 3.6 and 3.8 with a mixture of experts: their facts. Needs no torch."""

from dataclasses import replace

from lorgnette.models.qwen3_5 import facts

FAMILY = replace(
    facts.FAMILY,
    model_type="qwen3_5_moe",
    title="Qwen3.5-MoE",
    class_name="Qwen3_5MoeForConditionalGeneration",
    other_language_linears=(
        *facts.FAMILY.other_language_linears,
        *(f"mlp.shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    ),
    hub_names=("Qwen/Qwen3.5-35B-A3B", "Qwen/Qwen3.6-35B-A3B", "Qwen/Qwen3.5-122B-A10B", "Qwen/Qwen3.5-397B-A17B"),
)
