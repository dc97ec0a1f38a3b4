"""What differs between model families, and where their code is. Knows nothing about weights; needs no torch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from lorgnette.config import Part, TargetModule

LM_HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
"""transformers' current names, the same in every family."""
_ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """One model family. Its code is in `models/<model_type>/`, in files of the same names for every family.

    model_type: as in config.json. class_name: transformers' class.
    vision_linears, merger_linears: linear layers of a vision block (`visual.blocks.N.`) and of `visual.merger.`.
    feature_weight: the weight with one row per channel of an image feature.
    native_image_tokens: minimum and maximum per image in the hub's preprocessor_config.json.
    convert_weight_name: from a name in the files to transformers' current one.
    """

    model_type: str
    class_name: str
    vision_linears: tuple[str, ...]
    merger_linears: tuple[str, ...]
    feature_weight: str
    native_image_tokens: tuple[int, int]
    convert_weight_name: Callable[[str], str]

    @property
    def config_module(self) -> ModuleType:
        """config.py of the family: TextConfig, VisionConfig, find_unsupported_feature."""
        return import_module(f"lorgnette.models.{self.model_type}.config")

    def build_target_pattern(self, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...]) -> str:
        """The regular expression over full module names for PEFT's `target_modules`, matched with fullmatch.

        Short names alone are ambiguous: Qwen2.5-VL's vision MLP has gate, up and down projections too.
        """
        attention = [name for name in target_modules if name in _ATTENTION_MODULES]
        mlp = [name for name in target_modules if name not in _ATTENTION_MODULES]
        patterns = []
        if "language" in parts:
            blocks = [
                f"{block}\\.({'|'.join(names)})" for block, names in (("self_attn", attention), ("mlp", mlp)) if names
            ]
            patterns.append(rf"language_model\.layers\.\d+\.({'|'.join(blocks)})")
        if "vision" in parts:
            patterns.append(rf"visual\.blocks\.\d+\.({'|'.join(map(re.escape, self.vision_linears))})")
        if "merger" in parts:
            patterns.append(rf"visual\.merger\.({'|'.join(map(re.escape, self.merger_linears))})")
        return rf".*\.({'|'.join(patterns)})" if len(patterns) > 1 else rf".*\.{patterns[0]}"
