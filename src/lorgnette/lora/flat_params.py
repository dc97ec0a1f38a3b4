"""The adapter's factors as one flat vector, and its gradients as another: the optimizer updates all of it at once.

    values  | layer 0: A_q A_k A_v B_q B_k B_v  A_o B_o  … | layer 1 … |        fp32, as PEFT keeps them

Every factor is a view into the vector and has PEFT's name, so that what is written is PEFT's adapter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from lorgnette.config import LANGUAGE_TARGETS, Target
from lorgnette.kernels.multi_tensor_copy import Move, Spread
from lorgnette.models.lora_linear import Factors, LoraLinear
from lorgnette.models.qwen2_vl.config import TextShape
from lorgnette.models.qwen2_vl.text_decoder import Decoder

GROUPS: tuple[tuple[Target, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
"""Projections that share an input, and so a matrix: those of Layer.linears, in order."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Which projections are adapted, in every layer, and how."""

    text: TextShape
    targets: tuple[Target, ...]
    rank: int
    scale: float

    def adapted(self, group: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(target for target in group if target in self.targets)

    def columns(self, group: tuple[Target, ...]) -> int:
        """Columns that the group's matrix is wider by."""
        return self.rank * len(self.adapted(group))

    def inputs(self, target: Target) -> int:
        text = self.text
        return {"o_proj": text.heads * text.head_dim, "down_proj": text.mlp}.get(target, text.hidden)

    def outputs(self, target: Target) -> int:
        text = self.text
        narrow = text.kv_heads * text.head_dim
        wide = {"q_proj": text.heads * text.head_dim, "k_proj": narrow, "v_proj": narrow}
        return (wide | {"gate_proj": text.mlp, "up_proj": text.mlp}).get(target, text.hidden)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the factors by the name they have in PEFT's file, in the order they lie in the vector."""
        return {
            self.name(layer, target, factor): (
                (self.rank, self.inputs(target)) if factor == "A" else (self.outputs(target), self.rank)
            )
            for layer in range(self.text.layers)
            for group in GROUPS
            for factor in "AB"
            for target in self.adapted(group)
        }

    def name(self, layer: int, target: Target, factor: str) -> str:
        block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        return f"base_model.model.model.language_model.layers.{layer}.{block}.{target}.lora_{factor}.weight"


class FlatAdapter:
    """The factors' fp32 masters. `values` is the one parameter an optimizer sees; its `.grad` is always there."""

    def __init__(self, shape: AdapterShape, device: torch.device) -> None:
        self.shape = shape
        count = sum(math.prod(size) for size in shape.sizes().values())
        self.values = nn.Parameter(torch.zeros(count, device=device))
        self.values.grad = torch.zeros_like(self.values)
        self._values, self._grads = _views(shape, self.values.data), _views(shape, self.values.grad)

    @property
    def named(self) -> Mapping[str, Tensor]:
        """The masters by the name they have in PEFT's file."""
        return self._values

    @property
    def named_grads(self) -> Mapping[str, Tensor]:
        return self._grads

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the factors' values; names and shapes are those of `shape.sizes()`."""
        for name, view in self._values.items():
            view.copy_(state[name])

    def take(self, values: Tensor) -> None:
        """All of it at once, as `drawn` lays it out."""
        self.values.data.copy_(values)

    def on_cpu(self) -> dict[str, Tensor]:
        """A copy of the masters by name, made in one piece."""
        return _views(self.shape, self.values.detach().to("cpu", copy=True))

    @staticmethod
    def drawn(shape: AdapterShape, seed: int) -> Tensor:
        """A fresh adapter's values, those that PEFT would draw: A uniform (Kaiming, a = √5), B zero.

        PEFT makes a module's two linear layers, which draw their weights, and then draws A again. What is drawn for
        nothing is drawn in one piece: between two of torch's calls, other threads may keep Python for a while.
        """
        generator = torch.Generator().manual_seed(seed)
        values = torch.zeros(sum(math.prod(size) for size in shape.sizes().values()))
        views = _views(shape, values)
        for layer in range(shape.text.layers):
            for target in LANGUAGE_TARGETS:
                if target not in shape.targets:
                    continue
                a, b = (views[shape.name(layer, target, factor)] for factor in "AB")
                torch.empty(a.numel() + b.numel()).uniform_(generator=generator)
                a.uniform_(-1 / math.sqrt(a.shape[1]), 1 / math.sqrt(a.shape[1]), generator=generator)
        return values

    def attach(self, decoder: Decoder) -> Spread:
        """Make the decoder compute with these factors, and add their gradients here. Returns what brings the masters
        where they are computed with: made once here, to be made again whenever they change."""
        moves: list[Move] = []
        for i, layer in enumerate(decoder.layers):
            for linear, group in zip(layer.linears, GROUPS, strict=True):
                if self.shape.adapted(group):
                    moves += linear.adapt(self._factors(i, group), self.shape.scale)
        spread = Spread(self.values.data, moves)
        spread()
        return spread

    def _factors(self, layer: int, group: tuple[Target, ...]) -> Factors:
        adapted = self.shape.adapted(group)
        ends = list(accumulate(self.shape.outputs(target) for target in group))
        rows = {t: slice(end - self.shape.outputs(t), end) for t, end in zip(group, ends, strict=True)}

        def joined(views: Mapping[str, Tensor], flat: Tensor) -> Tensor:
            first = views[self.shape.name(layer, adapted[0], "A")]
            columns = self.shape.columns(group)
            return flat.as_strided((columns, first.shape[1]), (first.shape[1], 1), first.storage_offset())

        def each(views: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(views[self.shape.name(layer, target, "B")] for target in adapted)

        assert self.values.grad is not None
        return Factors(
            tuple(rows[target] for target in adapted),
            joined(self._values, self.values.data), each(self._values),
            joined(self._grads, self.values.grad), each(self._grads),
        )  # fmt: skip


def _views(shape: AdapterShape, flat: Tensor) -> dict[str, Tensor]:
    views, at = {}, 0
    for name, size in shape.sizes().items():
        views[name] = flat[at : at + math.prod(size)].view(size)
        at += math.prod(size)
    return views


def linear(
    shape: AdapterShape, group: tuple[Target, ...], salt: int, device: torch.device, dtype: torch.dtype
) -> LoraLinear:
    """An empty matrix for the group's projections, with columns for its factors."""
    inputs = shape.inputs(group[0])
    outputs = sum(shape.outputs(target) for target in group)
    weight = torch.empty(outputs, inputs + shape.columns(group), device=device, dtype=dtype)
    bias = torch.empty(outputs, device=device, dtype=dtype) if group[0] == "q_proj" else None
    return LoraLinear(weight, bias, inputs, salt)
