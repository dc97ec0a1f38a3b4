"""What is in an adapter's two files, looked at without its base model: what each kind of module has, what is broken,
and what vLLM would refuse."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorgnette.config import TARGET_MODULES
from lorgnette.errors import LorgnetteError
from lorgnette.lora.peft_files import CONFIG_FILE, WEIGHTS_FILE
from lorgnette.models.base_checkpoint import find_truncation

COPY_HINT = "copy the adapter's folder again, or take a checkpoint of its run"
_LORA_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be (vllm/config/lora.py, MaxLoRARanks)."""
_OTHER_BASE = ("pissa", "olora", "corda", "loftq")
"""Starts that take a part out of the base's weights: the adapter's base is not the checkpoint as it is published."""


@dataclass(frozen=True)
class ModuleKind:
    """Modules of one kind, such as `self_attn.q_proj`. silent: those whose B is zero, which do nothing; largest: the
    largest number in any B."""

    name: str
    num_modules: int
    num_zero: int
    max_b: float


@dataclass(frozen=True)
class AdapterReport:
    """faults: sentences; an adapter with one is no whole adapter. rank: the highest of any module."""

    kinds: tuple[ModuleKind, ...]
    rank: int
    problems: tuple[str, ...]
    vllm_obstacles: tuple[str, ...]
    """Why vLLM would refuse the adapter."""

    @property
    def num_modules(self) -> int:
        return sum(kind.num_modules for kind in self.kinds)

    @property
    def num_zero(self) -> int:
        return sum(kind.num_zero for kind in self.kinds)

    @property
    def max_lora_rank(self) -> int:
        """The least `--max-lora-rank` that takes the adapter."""
        return next((rank for rank in _VLLM_RANKS if rank >= self.rank), self.rank)


def inspect_adapter(adapter: Path) -> AdapterReport:
    """Raises LorgnetteError where a file is missing, cut short or broken."""
    config, tensors = _read_config(adapter / CONFIG_FILE), _read_tensors(adapter / WEIGHTS_FILE)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if found := _LORA_TENSOR.fullmatch(name):
            factors.setdefault(found["module"], {})[found["side"]] = tensor
    kinds: dict[str, list[torch.Tensor]] = {}
    for module, sides in factors.items():
        if "B" in sides:
            kinds.setdefault(_module_kind(module), []).append(sides["B"])
    listed = tuple(
        ModuleKind(name, len(found), sum(not b.any() for b in found), max(b.abs().max().item() for b in found))
        for name, found in kinds.items()
    )
    rank = max((sides["A"].shape[0] for sides in factors.values() if "A" in sides), default=0)
    faults = (*_check_config(config, factors), *_check_tensors(factors, tensors))
    rank = rank if faults else max(rank, config["r"])  # vLLM goes by what is said, rank_pattern or not
    return AdapterReport(listed, rank, faults, _refusals(config, tensors, rank))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "peft_type" not in config:
            raise ValueError("it names no peft_type")
    except FileNotFoundError:
        raise LorgnetteError(f"{path.name} is missing", where=str(path.parent), hint=COPY_HINT) from None
    except ValueError as error:
        raise LorgnetteError(f"{path.name} cannot be read: {error}", where=str(path), hint=COPY_HINT) from None
    return config


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise LorgnetteError(f"{path.name} is missing", where=str(path.parent), hint=COPY_HINT)
    try:
        return load_file(path)
    except SafetensorError as error:
        fault = find_truncation(path) or f"cannot be read: {error}"
        raise LorgnetteError(f"{path.name} {fault}", where=str(path), hint=COPY_HINT) from None


def _check_config(config: Mapping[str, Any], factors: Mapping[str, Mapping[str, torch.Tensor]]) -> tuple[str, ...]:
    """What makes the adapter another than its tensors are, or none at all."""
    if config["peft_type"] != "LORA":
        return (f"{CONFIG_FILE} says that it is a {config['peft_type']}, not a LORA",)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        return (f"{CONFIG_FILE} does not fit: r is {rank!r}, lora_alpha {alpha!r}",)
    axis = {"A": 0, "B": 1}
    ranks = {tensor.shape[axis[side]] for sides in factors.values() for side, tensor in sides.items()}
    if ranks and ranks != {rank} and not config.get("rank_pattern"):
        found = ", ".join(map(str, sorted(ranks)))
        return (f"{CONFIG_FILE} says rank {rank}, the tensors have rank {found}: the two files are not one adapter's",)
    return ()


def _check_tensors(
    factors: Mapping[str, Mapping[str, torch.Tensor]], tensors: Mapping[str, torch.Tensor]
) -> tuple[str, ...]:
    faults = []
    if not factors:
        faults.append("there is no LoRA tensor in it")
    half = [module for module, sides in factors.items() if len(sides) == 1]
    if half:
        faults.append(
            f"{len(half)} of {len(factors)} modules have only one of their two factors: {_format_names(half)}"
        )
    odd = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if odd:
        faults.append(f"{len(odd)} of {len(tensors)} tensors hold numbers that are not finite: {_format_names(odd)}")
    loud = [module for module, sides in factors.items() if "B" not in sides or sides["B"].any()]
    if factors and not loud:
        faults.append(f"B is zero in all {len(factors)} modules: the adapter does nothing")
    return tuple(faults)


def _refusals(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], rank: int) -> tuple[str, ...]:
    """What vLLM's reader of PEFT adapters refuses (vllm/lora/peft_helper.py and lora_model.py, 0.33)."""
    start = str(config.get("init_lora_weights", True))
    factors = {name: _LORA_TENSOR.fullmatch(name) for name in tensors}
    odd = [name for name, factor in factors.items() if not factor]
    modules = {_module_kind(factor["module"]) for factor in factors.values() if factor}
    decoder = {name for name in modules if name.rpartition(".")[2] in TARGET_MODULES}
    beside = sorted(name for name in modules - decoder if "visual." not in name)
    found = {
        f"rank {rank} is above its limit of {_VLLM_RANKS[-1]}": rank > _VLLM_RANKS[-1],
        "it is a DoRA": config.get("use_dora"),
        "biases are trained": config.get("bias", "none") != "none" or config.get("lora_bias"),
        f"modules_to_save is {config.get('modules_to_save')}": config.get("modules_to_save"),
        "layers are replicated": config.get("layer_replication"),
        f"it starts from {start}, which changes the base": start.lower().startswith(_OTHER_BASE),
        f"more is adapted than the decoder's projections: {', '.join(beside)}": beside,
        f"there are tensors beside LoRA's two factors: {_format_names(odd)}": odd,
        "the vision tower is adapted, which it leaves out or refuses": any(".visual." in name for name in tensors),
    }
    return tuple(what for what, is_so in found.items() if is_so)


def _module_kind(module: str) -> str:
    """`base_model.model.model.language_model.layers.3.self_attn.q_proj` → `self_attn.q_proj`"""
    parts = [part for part in module.split(".") if not part.isdecimal()]
    left_out = ("base_model", "model", "language_model", "layers")
    return ".".join(part for part in parts if part not in left_out)


def _format_names(names: Sequence[str]) -> str:
    short = [name.removeprefix("base_model.model.model.") for name in names[:2]]
    return ", ".join(short) + (", …" if len(names) > 2 else "")
