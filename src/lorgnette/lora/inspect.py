"""Inspects an adapter's two files without its base model: modules, ranks, and everything that is broken."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorgnette.config import TARGET_MODULES
from lorgnette.errors import LorgnetteError
from lorgnette.lora.metadata import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE, find_unsupported_option
from lorgnette.models.base_checkpoint import find_truncation

COPY_HINT = "copy the adapter's folder again, or take a checkpoint of its run"
_LORA_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_MODULE_PREFIX = ("base_model", "model", "language_model", "layers")

Factors = Mapping[str, Mapping[str, torch.Tensor]]
"""Module name → {"A": [rank, inputs], "B": [outputs, rank]}."""


@dataclass(frozen=True)
class AdapterReport:
    """num_modules: per kind, such as `self_attn.q_proj`; num_zero: those whose B is zero.

    problems: why the adapter is broken. merge_reason: why vLLM may not load it; None for plain decoder LoRA.
    """

    num_modules: Counter[str]
    num_zero: Counter[str]
    rank: int
    problems: tuple[str, ...]
    merge_reason: str | None


def inspect_adapter(adapter: Path) -> AdapterReport:
    """Read and check both files. Raises LorgnetteError if one is missing, cut short or unreadable."""
    # Both files.
    config_path, weights_path = adapter / CONFIG_FILE, adapter / WEIGHTS_FILE
    for path in (config_path, weights_path):
        if not path.is_file():
            raise LorgnetteError(f"{path.name} is missing", where=str(adapter), hint=COPY_HINT)
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ValueError("it has no peft_type")
    except ValueError as error:
        message = f"{CONFIG_FILE} cannot be read: {error}"
        raise LorgnetteError(message, where=str(config_path), hint=COPY_HINT) from None
    try:
        tensors = load_file(weights_path)
    except SafetensorError as error:
        reason = find_truncation(weights_path) or f"cannot be read: {error}"
        raise LorgnetteError(f"{WEIGHTS_FILE} {reason}", where=str(weights_path), hint=COPY_HINT) from None

    # Factors by module; modules by kind, such as `self_attn.q_proj` of
    # `base_model.model.model.language_model.layers.3.self_attn.q_proj`.
    factors: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    num_modules, num_zero = Counter[str](), Counter[str]()
    for name, tensor in tensors.items():
        if match := _LORA_TENSOR.fullmatch(name):
            factors[match["module"]][match["side"]] = tensor
            if match["side"] == "B":
                parts = (part for part in match["module"].split(".") if not part.isdecimal())
                kind = ".".join(part for part in parts if part not in _MODULE_PREFIX)
                num_modules[kind] += 1
                num_zero[kind] += not tensor.any()
    problems = (*_check_config(config, factors), *_check_tensors(factors, tensors))
    rank = max((sides["A"].shape[0] for sides in factors.values() if "A" in sides), default=0)
    return AdapterReport(num_modules, num_zero, rank, problems, _explain_merge(config, tensors))


def _check_config(config: Mapping[str, Any], factors: Factors) -> tuple[str, ...]:
    """Compare the configuration with the tensors."""
    if config["peft_type"] != "LORA":
        return (f"{CONFIG_FILE}: peft_type is {config['peft_type']}, not LORA",)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        return (f"{CONFIG_FILE} is invalid: r is {rank!r}, lora_alpha {alpha!r}",)
    ranks = {tensor.shape["AB".index(side)] for sides in factors.values() for side, tensor in sides.items()}
    if ranks and ranks != {rank} and not config.get("rank_pattern"):
        tensor_ranks = ", ".join(map(str, sorted(ranks)))
        return (f"{CONFIG_FILE} has rank {rank}, the tensors have rank {tensor_ranks}: files of two adapters",)
    return ()


def _check_tensors(factors: Factors, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Check that A and B are there for every module, that all values are finite, and that some B is not zero."""
    if not factors:
        return ("no LoRA tensors in the file",)
    problems = []
    if halves := [module for module, sides in factors.items() if len(sides) == 1]:
        problems.append(f"{len(halves)} of {len(factors)} modules have only A or only B: {_format_names(halves)}")
    if not_finite := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        problems.append(f"{len(not_finite)} of {len(tensors)} tensors have NaN or Inf: {_format_names(not_finite)}")
    if not any("B" not in sides or sides["B"].any() for sides in factors.values()):
        problems.append(f"B is zero in all {len(factors)} modules: the adapter has no effect")
    return tuple(problems)


def _explain_merge(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Servers like vLLM load plain LoRA of the decoder's linear layers; everything else is safe only when merged."""
    if option := find_unsupported_option(config):
        return f"its adapter_config.json sets {option}"
    for name in tensors:
        match = _LORA_TENSOR.fullmatch(name)
        if not match or ".visual." in name or match["module"].rpartition(".")[2] not in TARGET_MODULES:
            return f"it adapts more than the decoder's linear layers: {_format_names([name])}"
    return None


def _format_names(names: Sequence[str]) -> str:
    short = [name.removeprefix("base_model.model.model.") for name in names[:2]]
    return ", ".join(short) + (", …" if len(names) > 2 else "")
