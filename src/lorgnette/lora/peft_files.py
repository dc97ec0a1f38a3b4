"""PEFT's two adapter files, read and written without PEFT.

Importing PEFT and transformers takes longer than training on five hundred images; two files need neither.
"""

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.errors import LorgnetteError
from lorgnette.lora.metadata import CONFIG_FILE, AdapterMetadata
from lorgnette.models.adapter_shape import AdapterShape, compute_scale
from lorgnette.models.family import Family, convert_weight_name
from lorgnette.models.registry import TextConfig, VisionConfig, WeightShapes

WEIGHTS_FILE = "adapter_model.safetensors"
HINT = "give a complete adapter, and the base model it was trained on"
_SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False, None), "use_dora": (False, None),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layers_to_transform": (None,),
    "layer_replication": (None,), "modules_to_save": (None, []), "lora_bias": (False, None),
    "target_parameters": (None, []), "trainable_token_indices": (None,), "exclude_modules": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the frozen weights too
    "alora_invocation_tokens": (None,), "arrow_config": (None,), "kasa_config": (None,), "monteclora_config": (None,),
    "use_bdlora": (False, None), "use_qalora": (False, None), "velora_config": (None,),
}  # fmt: skip
"""PEFT's settings with the values that the fast engine supports, the first being PEFT's default.

Some change the result but not the tensors' names and shapes (activated LoRA, PiSSA, OLoRA).
"""


@dataclass(frozen=True)
class SavedAdapter:
    """The content of an adapter's files, with transformers' current tensor names."""

    folder: Path
    config: dict[str, Any]
    state: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "SavedAdapter":
        """Raises LorgnetteError for missing or broken files."""
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                message, hint = f"no adapter here: {name} is missing", "name a run's `adapter` folder"
                raise LorgnetteError(message, where=str(folder), hint=hint)
        try:
            state = {convert_lora_name(name): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        except SafetensorError as error:
            message = f"adapter cannot be read: {error}"
            raise LorgnetteError(message, where=str(folder / WEIGHTS_FILE), hint=HINT) from None
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            config["target_modules"], int(config["r"]), float(config["lora_alpha"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _build_config_error(error, folder) from None
        return cls(folder, config, state)

    def explain_unsupported(self, text: TextConfig, vision: VisionConfig) -> str | None:
        """Why the fast engine cannot run this adapter, or None if it can. PEFT may still run it."""
        if option := find_unsupported_option(self.config):
            return f"the adapter's {option} {self.config[option]!r}"
        is_in_tower = self._find_targeted(vision.list_weight_shapes())
        return "an adapter of the vision tower" if is_in_tower else None

    def build_shape(self, text: TextConfig) -> AdapterShape:
        """Raises LorgnetteError if the tensors do not match the adapter's config."""
        rank, alpha = int(self.config["r"]), float(self.config["lora_alpha"])
        scale = compute_scale(rank, alpha, bool(self.config.get("use_rslora")))
        try:
            names = {name.rpartition(".")[2] for name in self._find_targeted(text.list_weight_shapes())}
        except re.error as error:
            raise _build_config_error(error, self.folder) from None
        shape = AdapterShape(text, tuple(target for target in TARGET_MODULES if target in names), rank, scale)
        sizes = shape.factor_shapes()
        check_names(self.state.keys(), sizes.keys(), self.folder)
        for name, size in sizes.items():
            if (saved_size := tuple(self.state[name].shape)) != size:
                message = f"adapter does not fit the model: {name} is {list(saved_size)}, not {list(size)}"
                raise LorgnetteError(message, where=str(self.folder), hint=HINT)
        return shape

    def _find_targeted(self, shapes: WeightShapes) -> list[str]:
        """Names of the adapted modules. `target_modules` is a pattern of whole names, or a list of their last parts."""
        names = [
            name.removesuffix(".weight") for name, size in shapes.items() if len(size) == 2 and "embed" not in name
        ]
        targets = self.config["target_modules"]
        if isinstance(targets, str):
            return [name for name in names if re.fullmatch(targets, name)]
        return [name for name in names if any(f".{name}".endswith(f".{target}") for target in targets)]


def write_adapter(
    folder: Path, state: Mapping[str, Tensor], family: Family, lora: LoraSettings, metadata: AdapterMetadata
) -> None:
    """Write PEFT's two files and lorgnette.json into an existing folder. Raises OSError if the disk is full."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": metadata.model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": family.build_target_pattern(lora.target_modules, lora.parts),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
    try:
        save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    metadata.write(folder)


def find_unsupported_option(config: Mapping[str, Any]) -> str | None:
    """The first option of adapter_config.json that the fast engine does not support, or None."""
    options = (name for name, supported in _SUPPORTED_VALUES.items() if config.get(name, supported[0]) not in supported)
    return next(options, None)


def check_names(saved: Set[str], expected: Set[str], folder: Path) -> None:
    """Raises LorgnetteError if tensor names differ. PEFT only warns and runs with part of the adapter."""
    if different := sorted(saved ^ expected):
        names = f"{', '.join(different[:4])}{', …' if len(different) > 4 else ''}"
        message = f"{len(saved & expected)} of {len(expected)} adapter tensors match the model; these do not: {names}"
        raise LorgnetteError(message, where=str(folder), hint=HINT)


def convert_lora_name(name: str) -> str:
    """transformers' current name of an adapter's tensor."""
    prefix = "base_model.model."
    return prefix + convert_weight_name(name.removeprefix(prefix)) if name.startswith(prefix) else name


def _build_config_error(error: Exception, folder: Path) -> LorgnetteError:
    return LorgnetteError(f"{CONFIG_FILE} does not fit: {error!r}", where=str(folder), hint=HINT)
