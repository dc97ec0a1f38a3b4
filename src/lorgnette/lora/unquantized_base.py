"""The model without quantization that an adapter of NF4 weights is merged into.

Rounding W + B·A to NF4 again would lose most of B·A, so a merged checkpoint has the weights that were quantized.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.parse import read_front_matter
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.released_models import find_unquantized_name
from lorgnette.models.weight_loader import index_tensors, list_nf4_modules, load_weights_into
from lorgnette.report.console import Terminal
from lorgnette.resolve import resolve_model

MAX_DISTANCE = 0.2
"""NF4 moves weights that are normally distributed by 0.09 of their norm. Weights that are further away were never
quantized to these."""
_MAX_MATRICES = 28
"""So many, spread over all layers, are compared: a model of 8B has 252."""


@dataclass(frozen=True, slots=True)
class UnquantizedBase:
    """name: as `resolve_model` takes it. distance: ‖NF4 − W‖ / ‖W‖, over some of the matrices."""

    name: str
    checkpoint: BaseCheckpoint
    distance: float


def find_unquantized_base(
    checkpoint: BaseCheckpoint, name: str, terminal: Terminal, *, given: str | None = None
) -> UnquantizedBase:
    """The base model that a checkpoint with quantization was made of, downloaded if need be.

    name: of the checkpoint; given: the base model that the user names. Without it, a checkpoint whose files are not
    quantized is its own base; of another one the model card, config.json or its own name says which. Raises
    LorgnetteError if no such model is found, or one whose weights are not those that were quantized.
    """
    assert checkpoint.quantization is not None
    if given is None and not checkpoint.quantization.is_stored:
        base = BaseCheckpoint.from_folder(checkpoint.folder)
        return UnquantizedBase(name, base, measure_distance(checkpoint, base))
    failures = []
    for candidate in [given] if given else dict.fromkeys(_list_names(checkpoint, name)):
        try:
            base = BaseCheckpoint.from_folder(resolve_model(candidate, terminal))
            if base.quantization is not None:
                raise LorgnetteError("its weights are in NF4 too")
            distance = measure_distance(checkpoint, base)
        except LorgnetteError as error:
            failures.append(f"{candidate}: {error.message}")
            continue
        if distance > MAX_DISTANCE:
            failures.append(f"{candidate}: its weights are not those that were quantized ({distance:.0%} away)")
            continue
        return UnquantizedBase(candidate, base, distance)
    reason = "; ".join(failures) or "its files and its name tell none"
    message = f"{name} has NF4 weights alone, and no base model without quantization is found: {reason}"
    hint = "name it: --base MODEL (in Python: base=MODEL); or use the adapter beside its NF4 model"
    raise (UsageError if given else LorgnetteError)(message, where=str(checkpoint.folder), hint=hint)


def measure_distance(quantized: BaseCheckpoint, base: BaseCheckpoint) -> float:
    """‖NF4 − W‖ / ‖W‖ over at most _MAX_MATRICES matrices. Raises LorgnetteError if the models have other shapes."""
    modules = list(list_nf4_modules(quantized).items())
    stored = quantized.quantization is not None and quantized.quantization.is_stored
    tensors = index_tensors(base)
    difference = square = 0.0
    for module, is_nested in modules[:: -(-len(modules) // _MAX_MATRICES)]:
        name = f"{module}.weight"
        if name not in tensors:
            raise LorgnetteError(f"it has no {name}", where=str(base.folder))
        plain = torch.empty(tensors[name].shape)
        dequantized = torch.empty_like(plain)
        load_weights_into(base, {name: plain})
        if stored:
            load_weights_into(quantized, {name: dequantized})
        else:
            matrix = Nf4Matrix.allocate((plain.shape[0], plain.shape[1]), plain.device, is_nested=is_nested)
            load_weights_into(quantized, {name: matrix})
            dequantize_nf4(matrix, dequantized)
        difference += (dequantized - plain).square().sum().item()
        square += plain.square().sum().item()
    return (difference / square) ** 0.5 if square else 0.0


def _list_names(checkpoint: BaseCheckpoint, name: str) -> Iterator[str]:
    """What a checkpoint that is stored in NF4 tells of its base: the card first, then config.json, then its name."""
    card = checkpoint.folder / "README.md"
    if card.is_file():
        with suppress(LorgnetteError):  # a card is a text for people
            named = read_front_matter(card).get("base_model")
            yield from (str(each) for each in (named if isinstance(named, list) else [named]) if each)
    path = checkpoint.load_hf_config().get("_name_or_path")
    if isinstance(path, str) and path and Path(path) != checkpoint.folder:
        yield path
    if plain := find_unquantized_name(name):
        yield plain
