"""The `lora.*` settings with which lorgnette trains an adapter of the same shape as one on disk. Needs no torch."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorgnette.config import TARGET_MODULES, Part
from lorgnette.errors import LorgnetteError
from lorgnette.io.folder_kind import explain_folder
from lorgnette.io.parse import read_tensor_entries
from lorgnette.io.shell import format_command
from lorgnette.lora.peft_config import (
    CONFIG_FILE,
    COPY_HINT,
    PREFIX,
    WEIGHTS_FILE,
    find_unsupported_option,
    read_peft_config,
)
from lorgnette.models.family import convert_weight_name

_FACTOR = re.compile(rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_[AB]\.weight")
_PART_STARTS: dict[Part, tuple[str, ...]] = {
    "language": ("model.language_model.layers.",),
    "merger": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "vision": ("model.visual.blocks.",),
}


def read_lora_settings(adapter: Path) -> dict[str, Any]:
    """Rank, alpha, use_rslora, target_modules and parts, by their names in LoraSettings. Dropout is not among them: it
    does not change what an adapter is.

    Raises LorgnetteError with the reason if neither engine can train such an adapter, or if a file is broken.
    """
    config, path = read_peft_config(adapter), adapter / WEIGHTS_FILE
    if not path.is_file():
        raise explain_folder(adapter, "adapter", lacks=WEIGHTS_FILE)
    if option := find_unsupported_option(config):
        raise _build_refusal(adapter, f"its {CONFIG_FILE} sets {option}")
    alpha = config["lora_alpha"]
    if alpha != int(alpha) or alpha < 1:
        raise _build_refusal(adapter, f"its lora_alpha is {alpha}, and lora.alpha is a whole number above 0")
    try:
        entries = read_tensor_entries(path)
    except LorgnetteError as error:
        raise LorgnetteError(f"{WEIGHTS_FILE} {error.message}", where=str(path), hint=COPY_HINT) from None
    targets, parts = set(), set[Part]()
    for name in entries:
        match = _FACTOR.fullmatch(name)
        module = convert_weight_name(f"{match['module']}.").removesuffix(".") if match else ""
        part = next((part for part, starts in _PART_STARTS.items() if module.startswith(starts)), None)
        if part is None:
            raise _build_refusal(adapter, f"it has {name.removeprefix(PREFIX)}, which no setting of lora.* makes")
        parts.add(part)
        if part == "language":
            targets.add(module.rpartition(".")[2])
    return {
        "rank": config["r"],
        "alpha": int(alpha),
        "use_rslora": bool(config.get("use_rslora")),
        "target_modules": tuple(target for target in TARGET_MODULES if target in targets) or TARGET_MODULES,
        "parts": tuple(part for part in _PART_STARTS if part in parts),
    }


def check_modules(adapter: Path, factors: Iterable[str], weights: Iterable[str], pattern: str) -> None:
    """Check that the adapter has matrices for exactly the modules that settings adapt.

    factors: names of its tensors; weights: of the base model, both as transformers names them now; pattern: that of
    `Family.build_target_pattern`. Raises LorgnetteError.
    """
    adapted = {name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in factors}
    modules = {name.removesuffix(".weight") for name in weights}
    expected = {name for name in modules if re.fullmatch(pattern, name)}
    if different := sorted(expected ^ adapted):
        kind = "leaves out" if different[0] in expected else "also adapts"
        reason = f"it {kind} {different[0]}, and lora.target_modules adapts a projection in all layers or in none"
        raise _build_refusal(adapter, reason)


def _build_refusal(adapter: Path, reason: str) -> LorgnetteError:
    merge = f"{format_command('merge', adapter)} NEW_FOLDER"
    hint = f"merge it, and train a new adapter on the result: {merge}, then model=NEW_FOLDER"
    return LorgnetteError(f"the adapter cannot be trained further: {reason}", where=str(adapter), hint=hint)
