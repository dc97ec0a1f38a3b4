"""What differs between model families, and where their code is. Knows nothing about weights; needs no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorgnette.config import TARGET_MODULES, Part, TargetModule
from lorgnette.errors import UsageError

LM_HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
"""transformers' current names, the same in every family."""
_BLOCKS = ("self_attn", "mlp")


BoxScale = Literal["thousandths", "resized pixels"]
BoxFormat = Literal["tokens", "json"]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A size that is on the hubs.

    names: OWNER/NAME of its models, first the one that is meant by the family and the size alone.
    config: what config.json says about sizes.
    """

    names: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def token_side(self) -> int:
        """The side of an image token in pixels."""
        vision = self.config["vision_config"]
        return int(vision["patch_size"] * vision["spatial_merge_size"])


@dataclass(frozen=True, slots=True)
class Family:
    """The facts of one model family. Its code is in `models/<model_type>/`, in the same files for every family.

    model_type: as in config.json. title: for people. class_name: transformers' class.
    vision_linears, merger_linears: linear layers of a vision block (`visual.blocks.N.`) and of mergers (`visual.`).
    deepstack_linears: of each merger in `visual.deepstack_merger_list`.
    native_image_tokens: minimum and maximum per image in the hub's preprocessor_config.json.
    box_scale: what coordinates of boxes count: thousandths of the image's sides, or pixels of the resized image.
    box_format: boxes between control tokens, or JSON with `bbox_2d`.
    sizes: the models on the hubs.
    other_language_linears: linear layers of a decoder layer besides the seven projections. They are adapted where all
    seven are.
    expert_linears: those of the seven projections that only experts have. Experts are not adapted.
    template_options: variables of the chat template.
    can_pack: whether examples in one row of tokens stay apart. Layers with a recurrence do not keep them apart.
    ignored_weights: beginnings of the names of weights that transformers does not load.
    needs_tokenizer_json: whether vocab.json alone gives other tokens.
    """

    model_type: str
    title: str
    class_name: str
    vision_linears: tuple[str, ...]
    merger_linears: tuple[str, ...]
    native_image_tokens: tuple[int, int]
    box_scale: BoxScale
    box_format: BoxFormat
    sizes: tuple[ModelSize, ...]
    deepstack_linears: tuple[str, ...] = ()
    other_language_linears: tuple[str, ...] = ()
    expert_linears: tuple[TargetModule, ...] = ()
    template_options: tuple[tuple[str, bool], ...] = ()
    can_pack: bool = True
    ignored_weights: tuple[str, ...] = ()
    needs_tokenizer_json: bool = False

    @property
    def hub_names(self) -> tuple[str, ...]:
        """All models on the hubs."""
        return tuple(name for size in self.sizes for name in size.names)

    def build_target_pattern(self, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...]) -> str:
        """The regular expression over full module names for PEFT's `target_modules`, matched with fullmatch.

        Short names alone are ambiguous: Qwen2.5-VL's vision MLP has gate, up and down projections too.
        """
        patterns = []
        if "language" in parts:
            targets = [target for target in target_modules if target not in self.expert_linears]
            names = {block: [t for t in targets if name_linear(t).startswith(block)] for block in _BLOCKS}
            blocks = [f"{block}\\.({'|'.join(of_block)})" for block, of_block in names.items() if of_block]
            if set(target_modules) == set(TARGET_MODULES):
                blocks += map(re.escape, self.other_language_linears)
            patterns.append(rf"language_model\.layers\.\d+\.({'|'.join(blocks)})")
        if "vision" in parts:
            patterns.append(rf"visual\.blocks\.\d+\.({'|'.join(map(re.escape, self.vision_linears))})")
        if "merger" in parts:
            patterns.append(rf"visual\.({'|'.join(map(re.escape, self.merger_linears))})")
            if self.deepstack_linears:
                patterns.append(rf"visual\.deepstack_merger_list\.\d+\.({'|'.join(self.deepstack_linears)})")
        return rf".*\.({'|'.join(patterns)})" if len(patterns) > 1 else rf".*\.{patterns[0]}"

    def list_target_remarks(self, target_modules: tuple[TargetModule, ...], parts: tuple[Part, ...]) -> list[str]:
        """What an adapter of the decoder leaves out, in sentences. Raises UsageError if it leaves out everything."""
        if "language" not in parts:
            return []
        if not set(target_modules) - set(self.expert_linears):
            message = f"nothing to adapt: in {self.title} only experts have {', '.join(target_modules)}"
            others = ",".join(target for target in TARGET_MODULES if target not in self.expert_linears)
            raise UsageError(message, where="lora.target_modules", hint=f"use {others}, or all seven")
        remarks = []
        if self.expert_linears:
            remarks.append("the adapter leaves out the experts: it would take gigabytes with them")
        if self.other_language_linears and set(target_modules) != set(TARGET_MODULES):
            others = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in self.other_language_linears))
            remarks.append(f"the adapter leaves out {others}: it has them only with all seven lora.target_modules")
        return remarks


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
