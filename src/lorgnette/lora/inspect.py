"""Inspects an adapter without its base model: modules, ranks, and everything that is broken."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorgnette.config import TARGET_MODULES
from lorgnette.lora.peft_config import (
    CONFIG_FILE,
    MAX_UNUSED_RANK,
    build_pattern_lookup,
    find_unsupported_option,
    is_base_changed,
    list_unknown_options,
)
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.family import name_linear
from lorgnette.models.registry import FAMILIES

_LORA_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
_ADDED_TENSOR = re.compile(r".+\.(lora_\w+|token_adapter)\..+|.+\.lora_\w+")
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_MODULE_PREFIX = ("base_model", "model", "language_model", "layers")
_PREFIX = "base_model.model."
_DECODER_LINEARS = tuple(
    f".{name}"
    for name in (*map(name_linear, TARGET_MODULES), *(n for f in FAMILIES.values() for n in f.other_language_linears))
)
"""Linear layers that vLLM adapts in its models of all families; experts are not among them."""

Factors = Mapping[str, Mapping[str, torch.Tensor]]
"""Module name → {"A": [rank, inputs], "B": [outputs, rank]}."""


@dataclass(frozen=True)
class AdapterReport:
    """num_modules: per kind, such as `self_attn.q_proj`; num_zero: those whose B is zero.

    problems: why the adapter is broken. unknown_options: in adapter_config.json; PEFT ignores them. merge_reason: why
    vLLM may not load it; None for plain decoder LoRA. is_base_changed: whether the loaded model without the adapter is
    another one than the base model.
    """

    num_modules: Counter[str]
    num_zero: Counter[str]
    rank: int
    problems: tuple[str, ...]
    unknown_options: tuple[str, ...]
    merge_reason: str | None
    is_base_changed: bool


def inspect_adapter(saved: SavedAdapter) -> AdapterReport:
    """Check the content of both files."""
    config, tensors = saved.config, saved.state
    factors: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if match := _LORA_TENSOR.fullmatch(name):
            factors[match["module"]][match["side"]] = tensor
    num_modules, num_zero, rank = Counter[str](), Counter[str](), 0
    problems = _check_kinds(factors, tensors)
    if not problems:
        problems = *_check_ranks(config, factors), *_check_values(factors, tensors)
        rank = max((sides["A"].shape[0] for sides in factors.values() if "A" in sides), default=0)
        # Modules by kind, such as `self_attn.q_proj` of
        # `base_model.model.model.language_model.layers.3.self_attn.q_proj`.
        for module, sides in factors.items():
            parts = (part for part in module.split(".") if not part.isdecimal())
            kind = ".".join(part for part in parts if part not in _MODULE_PREFIX)
            num_modules[kind] += "B" in sides
            num_zero[kind] += "B" in sides and not sides["B"].float().any()
    own_modules = tuple(f".{name}" for name in config.get("modules_to_save") or ())
    base_tensors = [name for name in tensors if not _ADDED_TENSOR.fullmatch(name)]
    replaced = [name for name in base_tensors if not name.rpartition(".")[0].endswith(own_modules)]
    return AdapterReport(
        num_modules,
        num_zero,
        rank,
        problems,
        tuple(list_unknown_options(config)),
        _explain_merge(config, tensors),
        is_base_changed(config) or bool(replaced),
    )


def _check_kinds(factors: Factors, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Check that the tensors are numbers, and the factors matrices (of a convolution: with more axes)."""
    if other := [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES]:
        dtypes = ", ".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in other}))
        return (f"{len(other)} of {len(tensors)} tensors are {dtypes}, no weights: {_format_names(other)}",)
    flat = [module for module, sides in factors.items() if any(tensor.dim() < 2 for tensor in sides.values())]
    if flat:
        return (f"{len(flat)} of {len(factors)} modules have an A or B that is no matrix: {_format_names(flat)}",)
    return ()


def _check_ranks(config: Mapping[str, Any], factors: Factors) -> tuple[str, ...]:
    """Compare the configuration with the tensors."""
    ranks = {tensor.shape["AB".index(side)] for sides in factors.values() for side, tensor in sides.items()}
    find_rank = build_pattern_lookup(config.get("rank_pattern"), config["r"])
    # The factors of all experts are stored as one pair.
    experts = tuple({name.rpartition(".")[0] for name in config.get("target_parameters") or ()})
    for module, sides in factors.items():
        rank = find_rank(module.removeprefix(_PREFIX))
        found = {tensor.shape["AB".index(side)] for side, tensor in sides.items()}
        is_multiple = module.removesuffix(".base_layer").endswith(experts) and not any(size % rank for size in found)
        if found != {rank} and not is_multiple:
            tensor_ranks = ", ".join(map(str, sorted(ranks)))
            return (f"{CONFIG_FILE} has rank {rank}, the tensors have rank {tensor_ranks}: files of two adapters",)
    # PEFT allocates a module of the model that the file lacks before the names are compared.
    highest = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if highest > max(MAX_UNUSED_RANK, *ranks, 0):
        return (f"{CONFIG_FILE} has rank {highest}, no tensor has: files of two adapters",)
    return ()


def _check_values(factors: Factors, tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Check that A and B are there for every module, that all values are finite, and that some B is not zero."""
    if not tensors:
        return ("no tensors in the file",)
    if not factors and not any(map(_ADDED_TENSOR.fullmatch, tensors)):
        return ("no LoRA tensors in the file",)
    problems = []
    if halves := [module for module, sides in factors.items() if len(sides) == 1]:
        problems.append(f"{len(halves)} of {len(factors)} modules have only A or only B: {_format_names(halves)}")
    if not_finite := [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        problems.append(f"{len(not_finite)} of {len(tensors)} tensors have NaN or Inf: {_format_names(not_finite)}")
    is_plain = all(map(_LORA_TENSOR.fullmatch, tensors))
    if is_plain and not any("B" not in sides or sides["B"].float().any() for sides in factors.values()):
        problems.append(f"B is zero in all {len(factors)} modules: the adapter has no effect")
    return tuple(problems)


def _explain_merge(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Servers like vLLM load plain LoRA of the decoder's linear layers; everything else is safe only when merged."""
    if any(".experts." in name for name in tensors):
        return "it adapts experts, which older versions of vLLM leave out silently"
    if option := find_unsupported_option(config):
        return f"its {CONFIG_FILE} sets {option}"
    for name in tensors:
        match = _LORA_TENSOR.fullmatch(name)
        if not match or ".visual." in name or not match["module"].endswith(_DECODER_LINEARS):
            return f"it adapts more than the decoder's linear layers: {_format_names([name])}"
    return None


def _format_names(names: Sequence[str]) -> str:
    short = [name.removeprefix("base_model.model.model.") for name in names[:2]]
    return ", ".join(short) + (", …" if len(names) > 2 else "")
