"""Qwen3-VL with a mixture of experts: its facts. Needs no torch."""

from dataclasses import replace

from lorgnette.models.qwen3_vl import facts

FAMILY = replace(
    facts.FAMILY,
    model_type="qwen3_vl_moe",
    title="Qwen3-VL-MoE",
    class_name="Qwen3VLMoeForConditionalGeneration",
    hub_names=tuple(
        f"Qwen/Qwen3-VL-{size}-{kind}" for size in ("30B-A3B", "235B-A22B") for kind in ("Instruct", "Thinking")
    ),
)
