"""PEFT's two adapter files, read and written without PEFT.

Importing PEFT and transformers takes longer than training on five hundred images; two files need neither.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.errors import LorgnetteError
from lorgnette.io.folder_kind import explain_folder
from lorgnette.io.parse import read_tensor_entries, shorten
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_config import (
    ALL_LINEAR,
    CONFIG_FILE,
    COPY_HINT,
    PREFIX,
    WEIGHTS_FILE,
    build_pattern_lookup,
    find_bad_pattern,
    find_unsupported_option,
    read_peft_config,
)
from lorgnette.models.adapter_shape import AdapterShape, compute_scale
from lorgnette.models.family import EMBEDDING, LM_HEAD, Family, convert_weight_name, restore_weight_name
from lorgnette.models.registry import TextConfig, VisionConfig

__all__ = ["PREFIX", "WEIGHTS_FILE"]  # used by other packages

HINT = "give a complete adapter, and the base model it was trained on"
_MAX_TENSORS = 20_000
"""A model of 72B, each of whose 560 linear layers has four tensors, has 2240."""
_DECODER_LINEAR = re.compile(rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(TARGET_MODULES)})")


@dataclass(frozen=True)
class SavedAdapter:
    """The content of an adapter's files, with transformers' current tensor names.

    has_old_names: the file has the names from before transformers 4.52.
    """

    folder: Path
    config: dict[str, Any]
    state: dict[str, Tensor]
    has_old_names: bool = False

    @classmethod
    def load(cls, folder: Path) -> "SavedAdapter":
        """Raises LorgnetteError for missing or broken files."""
        config, path = read_peft_config(folder), folder / WEIGHTS_FILE
        if not path.is_file():
            raise explain_folder(folder, "adapter", lacks=WEIGHTS_FILE)
        tensors = _load_tensors(path)
        state = {convert_lora_name(name): tensor for name, tensor in tensors.items()}
        if len(state) < len(tensors):
            twice = f"{len(tensors) - len(state)} of {len(tensors)} tensors are there under an old and a new name"
            raise LorgnetteError(f"{WEIGHTS_FILE}: {twice}", where=str(path), hint=COPY_HINT)
        saved = cls(folder, config, state, has_old_names=state.keys() != tensors.keys())
        saved.check_patterns(list_modules(name.removeprefix(PREFIX) for name in state))
        return saved

    def explain_unsupported(self, text: TextConfig, vision: VisionConfig) -> str | None:
        """Why the fast engine cannot run this adapter, or None if it can. PEFT may still run it."""
        if option := find_unsupported_option(self.config):
            return f"the adapter's {option} {self.config[option]!r}"
        if self.config["target_modules"] == ALL_LINEAR:
            return f"the adapter's target_modules {ALL_LINEAR!r}"
        targets = self.find_targets(list_modules(text.list_weight_shapes() | vision.list_weight_shapes()))
        if any(target.startswith("model.visual") for target in targets):
            return "an adapter of the vision tower"
        outside = [target for target in targets if not _DECODER_LINEAR.fullmatch(target)]
        return f"an adapter of {outside[0]}" if outside else None

    def build_shape(self, text: TextConfig) -> AdapterShape:
        """Raises LorgnetteError if the tensors do not match the adapter's config."""
        rank, alpha = self.config["r"], float(self.config["lora_alpha"])
        scale = compute_scale(rank, alpha, bool(self.config.get("use_rslora")))
        names = {name.rpartition(".")[2] for name in self.find_targets(list_modules(text.list_weight_shapes()))}
        shape = AdapterShape(text, tuple(target for target in TARGET_MODULES if target in names), rank, scale)
        check_tensors(self.state, shape.factor_shapes(), self.folder)
        return shape

    def check_fits(self, text: TextConfig, vision: VisionConfig) -> None:
        """Compare names and shapes of the tensors with the model's, before any weight of it is read.

        Raises LorgnetteError. Only plain LoRA of linear layers is compared; of all else PEFT judges when it loads.
        """
        shapes = text.list_weight_shapes() | vision.list_weight_shapes()
        self.check_patterns(list_modules(shapes))
        if find_unsupported_option(self.config) or self.config["target_modules"] == ALL_LINEAR:
            return
        linears = {
            name.removesuffix(".weight"): shape
            for name, shape in (shapes | {LM_HEAD: shapes[EMBEDDING]}).items()
            if len(shape) == 2 and name != EMBEDDING
        }
        targets = self.find_targets(list_modules(shapes))
        if linears.keys() >= set(targets):
            rank = self.config["r"]
            factors = {f"{PREFIX}{name}.lora_A.weight": (rank, linears[name][1]) for name in targets}
            factors |= {f"{PREFIX}{name}.lora_B.weight": (linears[name][0], rank) for name in targets}
            check_tensors(self.state, factors, self.folder)

    def check_patterns(self, modules: Collection[str]) -> None:
        """Raises LorgnetteError for a regular expression that is none, or that takes too long with these modules."""
        names = {*modules, *map(restore_weight_name, modules)} if self.has_old_names else modules
        if fault := find_bad_pattern(self.config, names):
            raise LorgnetteError(f"{CONFIG_FILE}: {fault}", where=str(self.folder), hint=HINT)

    def find_targets(self, modules: Iterable[str]) -> list[str]:
        """The adapted ones of these modules.

        `target_modules` is a regular expression of whole names, or a list of their last parts. In an adapter with old
        names it is about those.
        """
        targets = self.config["target_modules"]
        if isinstance(targets, str):
            expression = re.compile(targets)
            return [module for module in modules if any(map(expression.fullmatch, self._list_names(module)))]
        ends = {f".{target}" for target in targets or ()}
        return [module for module in modules if any(ends & _list_ends(name) for name in self._list_names(module))]

    def build_peft_options(self, modules: Iterable[str]) -> dict[str, Any]:
        """Options to set in PEFT's config so that it finds the adapter's modules, by their current names.

        None are needed for an adapter with current names. modules: all of the model.
        """
        if not self.has_old_names:
            return {}
        targets = self.find_targets(modules)
        options: dict[str, Any] = {"target_modules": set(targets)}
        for option in ("rank_pattern", "alpha_pattern"):
            find_value = build_pattern_lookup(self.config.get(option), None)
            values = {re.escape(target): find_value(restore_weight_name(target)) for target in targets}
            options[option] = {target: value for target, value in values.items() if value is not None}
        return options

    def _list_names(self, module: str) -> tuple[str, ...]:
        return (module, restore_weight_name(module)) if self.has_old_names else (module,)


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
    write_peft_files(folder, config, state)
    metadata.write(folder)


def write_peft_files(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write PEFT's two files into an existing folder. Raises OSError if the disk is full."""
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
    try:
        save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def list_modules(weights: Iterable[str]) -> list[str]:
    """The names of all modules that hold these weights, directly or not; the output layer also if it is tied."""
    modules = {name: None for weight in (*weights, LM_HEAD) for name in reversed(_list_starts(weight))}
    return list(modules)


def check_tensors(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Raises LorgnetteError if names or shapes differ. PEFT only warns of names and runs with part of the adapter."""
    check_names(state.keys(), shapes.keys(), folder)
    for name, shape in shapes.items():
        if (saved_shape := tuple(state[name].shape)) != shape:
            message = f"adapter does not fit the model: {name} is {list(saved_shape)}, not {list(shape)}"
            raise LorgnetteError(message, where=str(folder), hint=HINT)


def check_names(saved: Collection[str], expected: Collection[str], folder: Path) -> None:
    """Raises LorgnetteError if tensor names differ."""
    if message := explain_names(saved, expected):
        raise LorgnetteError(message, where=str(folder), hint=HINT)


def explain_names(saved: Collection[str], expected: Collection[str]) -> str | None:
    """How an adapter's tensor names differ from those that the model and the adapter's config ask for."""
    saved, expected = set(saved), set(expected)
    if not (different := sorted(saved ^ expected)):
        return None
    names = f"{', '.join(different[:4])}{', …' if len(different) > 4 else ''}"
    return f"{len(saved & expected)} of {len(expected)} adapter tensors match the model; these do not: {names}"


def explain_load_error(error: Exception | str) -> str:
    """Why PEFT cannot load an adapter, in one line. error: what PEFT raised, or its text with the type before it."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    is_list = "Error(s) in loading state_dict" in text  # then a line for every tensor
    return f"PEFT cannot load it: {(lines[1:2] if is_list and lines[1:] else lines)[0][:300]}"


def convert_lora_name(name: str) -> str:
    """transformers' current name of an adapter's tensor."""
    return PREFIX + convert_weight_name(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def restore_lora_name(name: str) -> str:
    """The name of an adapter's tensor before transformers 4.52."""
    return PREFIX + restore_weight_name(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        entries = read_tensor_entries(path)
        if len(entries) > _MAX_TENSORS:
            raise LorgnetteError(f"has {len(entries):,} tensors, more than {_MAX_TENSORS:,}")
        if odd := next((name for name in entries if not name.isprintable()), None):
            raise LorgnetteError(f"has a tensor whose name is not printable: {shorten(ascii(odd))}")
        return load_file(path)
    except (LorgnetteError, SafetensorError, ValueError, TypeError, KeyError) as error:
        reason = error.message if isinstance(error, LorgnetteError) else f"cannot be read: {error}"
        raise LorgnetteError(f"{WEIGHTS_FILE} {reason}", where=str(path), hint=COPY_HINT) from None


def _list_starts(name: str) -> list[str]:
    """`a.b.c` → `a.b`, `a`: the module of a weight and all modules around it."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _list_ends(name: str) -> set[str]:
    """`a.b` → `.a.b`, `.b`."""
    parts = name.split(".")
    return {f".{'.'.join(parts[start:])}" for start in range(len(parts))}
