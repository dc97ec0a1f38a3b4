"""What differs between model families, and where their code is. Knows nothing about weights; needs no torch."""

import re
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from lorgnette.config import Part, TargetModule

LM_HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
"""transformers' current names, the same in every family."""
_BLOCKS = ("self_attn", "mlp")


@dataclass(frozen=True, slots=True)
class Family:
    """One model family. Its code is in `models/<model_type>/`, in files of the same names for every family.

    model_type: as in config.json. class_name: transformers' class.
    vision_linears, merger_linears: linear layers of a vision block (`visual.blocks.N.`) and of `visual.merger.`.
    feature_weight: the weight with one row per channel of an image feature.
    native_image_tokens: minimum and maximum per image in the hub's preprocessor_config.json.
    """

    model_type: str
    class_name: str
    vision_linears: tuple[str, ...]
    merger_linears: tuple[str, ...]
    feature_weight: str
    native_image_tokens: tuple[int, int]

    @property
    def config_module(self) -> ModuleType:
        """config.py of the family: parse_configs, find_unsupported_feature."""
        return import_module(f"lorgnette.models.{self.model_type}.config")

    def build_target_pattern(self, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...]) -> str:
        """The regular expression over full module names for PEFT's `target_modules`, matched with fullmatch.

        Short names alone are ambiguous: Qwen2.5-VL's vision MLP has gate, up and down projections too.
        """
        patterns = []
        if "language" in parts:
            names = {block: [t for t in target_modules if name_linear(t).startswith(block)] for block in _BLOCKS}
            blocks = [f"{block}\\.({'|'.join(targets)})" for block, targets in names.items() if targets]
            patterns.append(rf"language_model\.layers\.\d+\.({'|'.join(blocks)})")
        if "vision" in parts:
            patterns.append(rf"visual\.blocks\.\d+\.({'|'.join(map(re.escape, self.vision_linears))})")
        if "merger" in parts:
            patterns.append(rf"visual\.merger\.({'|'.join(map(re.escape, self.merger_linears))})")
        return rf".*\.({'|'.join(patterns)})" if len(patterns) > 1 else rf".*\.{patterns[0]}"


def name_linear(target: str) -> str:
    """The name of a projection within a decoder layer: `q_proj` is `self_attn.q_proj`."""
    return f"{'self_attn' if target in ('q_proj', 'k_proj', 'v_proj', 'o_proj') else 'mlp'}.{target}"


def convert_weight_name(name: str) -> str:
    """transformers' current name of a weight in the hub's files.

    Until 4.52 the decoder was at `model` and the vision tower at `visual`. Newer names are returned unchanged.
    """
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


def restore_weight_name(name: str) -> str:
    """The name of a weight or module before transformers 4.52; `convert_weight_name` gives a weight's name back."""
    if name.startswith("model.visual"):
        return name.removeprefix("model.")
    return name.replace("model.language_model", "model", 1) if name.startswith("model.language_model") else name
