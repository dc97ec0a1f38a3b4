"""The model without quantization that an adapter of NF4 weights is merged into.

Rounding W + B·A to NF4 again would lose most of B·A, so a merged checkpoint has the weights that were quantized.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lorgnette.config import TARGET_MODULES
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.parse import read_front_matter
from lorgnette.kernels.nf4 import BLOCK_SIZE, Nf4Matrix, dequantize_nf4
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.released_models import find_unquantized_name
from lorgnette.models.weight_loader import index_tensors, list_nf4_modules, load_weights_into, read_nf4_state
from lorgnette.report.console import Terminal
from lorgnette.resolve import resolve_model

MIN_EQUAL_SHARE = 0.99
"""Of the bytes of each matrix. The weights that were quantized give all of them; with noise of 0.5 % they give 97 %,
with 2 % 88 %."""
_NAME_BASE = "name the model that was quantized: --base MODEL (in Python: base=MODEL)"
_MAX_MATRICES = 28
"""So many, spread over all layers, are compared: a model of 8B has 252."""


@dataclass(frozen=True, slots=True)
class UnquantizedBase:
    """name: as `resolve_model` takes it. distance: ‖NF4 − W‖ / ‖W‖, over some of the matrices."""

    name: str
    checkpoint: BaseCheckpoint
    distance: float


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """distance: ‖NF4 − W‖ / ‖W‖, over some of the matrices. equal_share: of the bytes that W has in NF4, as many are
    those of the model in NF4; of the matrix that has fewest."""

    distance: float
    equal_share: float


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
        return UnquantizedBase(name, base, compare_weights(checkpoint, base).distance)
    if given is not None:
        return _open_base(checkpoint, given, terminal)
    failures = []
    for candidate in dict.fromkeys(_list_names(checkpoint, name)):
        try:
            return _open_base(checkpoint, candidate, terminal)
        except LorgnetteError as error:
            failures.append(f"{candidate}: {error.message}")
    reason = "; ".join(failures) or "its files and its name tell none"
    message = f"{name} has NF4 weights alone, and no base model without quantization is found: {reason}"
    hint = f"{_NAME_BASE}; or use the adapter beside its NF4 model"
    raise LorgnetteError(message, where=str(checkpoint.folder), hint=hint)


def _open_base(checkpoint: BaseCheckpoint, name: str, terminal: Terminal) -> UnquantizedBase:
    """Raises LorgnetteError for a model that cannot be opened, UsageError for another one than that was quantized."""
    base = BaseCheckpoint.from_folder(resolve_model(name, terminal))
    if base.quantization is not None:
        raise UsageError("its weights are in NF4 too", where=name, hint=_NAME_BASE)
    comparison = compare_weights(checkpoint, base)
    if problem := _explain_difference(checkpoint, base, comparison):
        message = f"its weights are not those that were quantized ({problem})"
        raise UsageError(message, where=name, hint=_NAME_BASE)
    return UnquantizedBase(name, base, comparison.distance)


def compare_weights(quantized: BaseCheckpoint, base: BaseCheckpoint) -> WeightComparison:
    """Quantize at most _MAX_MATRICES matrices of the base. Raises LorgnetteError if the models have other shapes."""
    modules, tensors, stored = list(list_nf4_modules(quantized).items()), index_tensors(base), index_tensors(quantized)
    step = -(-len(modules) // _MAX_MATRICES)
    step += step % len(TARGET_MODULES) == 0  # else every matrix would be the same projection of its layer
    difference = square = 0.0
    shares = [1.0]
    for module, is_nested in modules[::step]:
        name = f"{module}.weight"
        if name not in tensors:
            raise LorgnetteError(f"it has no {name}", where=str(base.folder))
        plain = torch.empty(tensors[name].shape)
        shape = plain.shape[0], plain.shape[1]
        matrix, own = (Nf4Matrix.allocate(shape, plain.device, is_nested=nested) for nested in (is_nested, False))
        load_weights_into(base, {name: plain})
        load_weights_into(quantized, {name: matrix})
        state = read_nf4_state(name, stored, quantized)
        load_weights_into(base, {name: own}, quantize_as=state.dtype if state else torch.float32)
        shares.append(_count_equal_share(matrix, own))
        dequantized = torch.empty_like(plain)
        dequantize_nf4(matrix, dequantized)
        difference += (dequantized - plain).square().sum().item()
        square += plain.square().sum().item()
    return WeightComparison((difference / square) ** 0.5 if square else 0.0, min(shares))


def _count_equal_share(matrix: Nf4Matrix, own: Nf4Matrix) -> float:
    """Of the packed bytes, without blocks of zeros: bitsandbytes gives these other levels on a GPU than on a CPU."""
    is_counted = (own.absmax > 0).repeat_interleave(BLOCK_SIZE // 2)[: len(own.packed)]
    equal = (matrix.packed == own.packed)[is_counted]
    return equal.float().mean().item() if len(equal) else 1.0


def _explain_difference(quantized: BaseCheckpoint, base: BaseCheckpoint, comparison: WeightComparison) -> str | None:
    """Why the base's weights are not those that were quantized; None if they are."""
    assert quantized.quantization is not None
    if not quantized.quantization.is_stored and base.fingerprint != quantized.fingerprint:
        return "the adapter's base model has others"
    if comparison.equal_share < MIN_EQUAL_SHARE:
        return f"quantized, a matrix of them gives {comparison.equal_share:.1%} of the NF4 bytes, not all"
    return None


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
