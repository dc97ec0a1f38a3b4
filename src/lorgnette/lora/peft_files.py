"""PEFT's two files, read and written without PEFT, and `lorgnette.json` beside them.

Importing PEFT and transformers takes longer than training on five hundred pictures does; two files need neither.
"""

import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorgnette.config import TARGET_MODULES, LoraSettings, TargetModule
from lorgnette.errors import LorgnetteError
from lorgnette.lora.flat_params import AdapterShape
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig
from lorgnette.models.qwen2_vl.family import Family

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
HINT = "give a whole adapter, and the base model it was trained on"
_SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "fan_in_fan_out": (False, None), "use_dora": (False, None),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "layers_to_transform": (None,),
    "layer_replication": (None,), "modules_to_save": (None, []), "lora_bias": (False, None),
    "target_parameters": (None, []), "trainable_token_indices": (None,), "exclude_modules": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # others change the frozen weights too
    "alora_invocation_tokens": (None,), "arrow_config": (None,), "kasa_config": (None,), "monteclora_config": (None,),
    "use_bdlora": (False, None), "use_qalora": (False, None), "velora_config": (None,),
}  # fmt: skip
"""Settings of PEFT's that our own engine computes, with the values it knows. Some change what is computed and leave the
tensors' names and shapes as they are (activated LoRA, PiSSA, OLoRA)."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter's files as they lie in `folder`; names are today's."""

    folder: Path
    config: dict[str, Any]
    state: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> "SavedAdapter":
        """Raises LorgnetteError where files are missing or broken."""
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise LorgnetteError(
                    f"no adapter here: {name} is missing", where=str(folder), hint="name a run's `adapter` folder"
                )
        try:
            state = {todays_name(name): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        except SafetensorError as error:
            raise LorgnetteError(
                f"adapter cannot be read: {error}", where=str(folder / WEIGHTS_FILE), hint=HINT
            ) from None
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            config["target_modules"], int(config["r"]), float(config["lora_alpha"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LorgnetteError(f"{CONFIG_FILE} does not fit: {error!r}", where=str(folder), hint=HINT) from None
        return cls(folder, config, state)

    def explain_unsupported(self, text: TextConfig, vision: VisionConfig) -> str | None:
        """Why our own engine cannot compute this adapter, or None where it can; PEFT may still."""
        for name, known in _SUPPORTED_VALUES.items():
            if self.config.get(name, known[0]) not in known:
                return f"the adapter's {name} {self.config[name]!r}"
        if any(
            _is_targeted(self.config["target_modules"], name) for name in _list_linears(vision.list_weight_shapes())
        ):
            return "an adapter of the vision tower"
        return None

    def build_shape(self, text: TextConfig) -> AdapterShape:
        """Raises LorgnetteError where the tensors are not those that the adapter's own settings ask for."""
        rank = int(self.config["r"])
        root = math.sqrt(rank) if self.config.get("use_rslora") else rank
        shape = AdapterShape(text, self._find_targets(text), rank, float(self.config["lora_alpha"]) / root)
        sizes = shape.factor_shapes()
        check_names(self.state.keys(), sizes.keys(), self.folder)
        for name, size in sizes.items():
            if tuple(self.state[name].shape) != size:
                raise LorgnetteError(
                    f"adapter does not fit the model: {name} is {list(self.state[name].shape)}, not {list(size)}",
                    where=str(self.folder),
                    hint=HINT,
                )
        return shape

    def _find_targets(self, text: TextConfig) -> tuple[TargetModule, ...]:
        try:
            found = {
                name.rpartition(".")[2]
                for name in _list_linears(text.list_weight_shapes())
                if _is_targeted(self.config["target_modules"], name)
            }
        except re.error as error:
            raise LorgnetteError(f"{CONFIG_FILE} does not fit: {error!r}", where=str(self.folder), hint=HINT) from None
        return tuple(target for target in TARGET_MODULES if target in found)


def write_adapter(
    folder: Path, state: Mapping[str, Tensor], family: Family, lora: LoraSettings, metadata: AdapterMetadata
) -> None:
    """The two files and `lorgnette.json` into a folder that is there. Raises OSError where the disk is full."""
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
    try:
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in state.items()}, folder / WEIGHTS_FILE, {"format": "pt"}
        )
    except SafetensorError as error:
        raise OSError(str(error)) from error
    metadata.write(folder)


def compute_scale(lora: LoraSettings) -> float:
    """What B·A·x is multiplied with."""
    return lora.alpha / (math.sqrt(lora.rank) if lora.use_rslora else lora.rank)


def check_names(saved: Set[str], wanted: Set[str], folder: Path) -> None:
    """PEFT would only warn, and answer with an adapter that is half there or not there at all."""
    odd = sorted(saved ^ wanted)
    if odd:
        raise LorgnetteError(
            f"{len(saved & wanted)} of {len(wanted)} adapter tensors match the model; these do not: "
            f"{', '.join(odd[:4])}{', …' if len(odd) > 4 else ''}",
            where=str(folder),
            hint=HINT,
        )


def _list_linears(sizes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Modules with a matrix, by the name that `target_modules` speaks of."""
    return [name.removesuffix(".weight") for name, size in sizes.items() if len(size) == 2 and "embed" not in name]


def _is_targeted(target_modules: str | list[str], name: str) -> bool:
    """PEFT's rule: a string is a pattern of the whole name, a list holds names or their last parts."""
    if isinstance(target_modules, str):
        return re.fullmatch(target_modules, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in target_modules)


def todays_name(name: str) -> str:
    """An adapter's tensor as plain peft looks for it. Until transformers 4.52 the decoder's layers stood at
    `model.layers` and the tower at `visual`."""
    name = re.sub(r"^base_model\.model\.model\.layers\.", "base_model.model.model.language_model.layers.", name)
    return re.sub(r"^base_model\.model\.visual\.", "base_model.model.model.visual.", name)
