"""Writes an adapter with the module names from before transformers 4.52, or with the current ones.

Until 4.52 the decoder was at `model` and the vision tower at `visual`. PEFT finds an adapter's modules by name: with
the other version's names it loads nothing and only warns.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.shell import format_command
from lorgnette.lora.peft_config import CONFIG_FILE, SUPPORTED_VALUES, WITHOUT_EFFECT, build_pattern_lookup
from lorgnette.lora.peft_files import PREFIX, SavedAdapter, restore_lora_name, write_peft_files
from lorgnette.models.family import convert_weight_name, restore_weight_name

OLD_OPTIONS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "loftq_config", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora",
})  # fmt: skip
"""Options of PEFT 0.13, which is as old as those versions of transformers. It refuses a file with any other."""
_SELECTORS = ("exclude_modules", "layers_to_transform", "layers_pattern")


def write_renamed(saved: SavedAdapter, folder: Path, *, use_old_names: bool) -> None:
    """Write PEFT's two files into an existing folder. The modules are listed by their full names.

    Raises LorgnetteError if old names are asked for and the adapter needs an option that PEFT 0.13 does not have.
    """
    rename = restore_weight_name if use_old_names else _convert_module_name
    targets = sorted({name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in saved.state if ".lora_" in name})
    # The full list of modules replaces what selected them.
    config = {option: value for option, value in saved.config.items() if option not in _SELECTORS}
    config["target_modules"] = [rename(target) for target in targets]
    for option in ("rank_pattern", "alpha_pattern"):
        if config.get(option):
            find_value = build_pattern_lookup(config[option], None)
            read_name = restore_weight_name if saved.has_old_names else str
            values = {target: find_value(read_name(target)) for target in targets}
            config[option] = {re.escape(rename(name)): value for name, value in values.items() if value is not None}
    if config.get("modules_to_save"):
        config["modules_to_save"] = [rename(name) for name in config["modules_to_save"]]
    if isinstance(tokens := config.get("trainable_token_indices"), dict):
        config["trainable_token_indices"] = {rename(name): indices for name, indices in tokens.items()}
    if use_old_names:
        config = _drop_new_options(config, saved.folder)
    rename_tensor: Callable[[str], str] = restore_lora_name if use_old_names else str
    write_peft_files(folder, config, {rename_tensor(name): tensor for name, tensor in saved.state.items()})


def _convert_module_name(name: str) -> str:
    return convert_weight_name(f"{name}.").removesuffix(".")


def _drop_new_options(config: dict[str, Any], adapter: Path) -> dict[str, Any]:
    for option, value in config.items():
        is_default = not value or option in WITHOUT_EFFECT or value in SUPPORTED_VALUES.get(option, ())
        if option not in OLD_OPTIONS and not is_default:
            message = f"its {CONFIG_FILE} sets {option}, which PEFT before transformers 4.52 does not have"
            hint = f"merge it: {format_command('merge', adapter)} NEW_FOLDER"
            raise LorgnetteError(message, where=str(adapter), hint=hint)
    return {option: value for option, value in config.items() if option in OLD_OPTIONS}
