"""Facts per model family: a table, so that no other file asks which model it has.

Keyed by the checkpoint's `model_type`. Knows nothing about weights.
"""

import re
from dataclasses import dataclass

from lorgnette.config import Part, TargetModule
from lorgnette.errors import LorgnetteError

_ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """One model family.

    vision_linears, merger_linears: linear layers of a vision block and of the merger, under `visual.blocks.N.` and
    `visual.merger.`, as transformers names them.
    """

    model_type: str
    class_name: str
    vision_linears: tuple[str, ...]
    merger_linears: tuple[str, ...]

    def build_target_pattern(self, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...]) -> str:
        """The regular expression over full module names for PEFT's `target_modules` (it uses fullmatch).

        Names alone would not do: on Qwen2.5-VL the vision tower's MLP has gate, up and down projections too.
        """
        attention = [t for t in target_modules if t in _ATTENTION_MODULES]
        mlp = [t for t in target_modules if t not in _ATTENTION_MODULES]
        patterns = []
        if "language" in parts:
            kinds = [
                f"{block}\\.({'|'.join(found)})" for block, found in (("self_attn", attention), ("mlp", mlp)) if found
            ]
            patterns.append(rf"language_model\.layers\.\d+\.({'|'.join(kinds)})")
        if "vision" in parts:
            patterns.append(rf"visual\.blocks\.\d+\.({'|'.join(map(re.escape, self.vision_linears))})")
        if "merger" in parts:
            patterns.append(rf"visual\.merger\.({'|'.join(map(re.escape, self.merger_linears))})")
        return rf".*\.({'|'.join(patterns)})" if len(patterns) > 1 else rf".*\.{patterns[0]}"


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="qwen2_vl",
            class_name="Qwen2VLForConditionalGeneration",
            vision_linears=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
            merger_linears=("mlp.0", "mlp.2"),
        ),
    )
}


def find_family(model_type: str | None, where: str) -> Family:
    """The family of a checkpoint. Raises LorgnetteError for one that is not supported."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise LorgnetteError(
        f"model_type {model_type!r} is not supported", where=where, hint=f"supported: {', '.join(FAMILIES)}"
    )
