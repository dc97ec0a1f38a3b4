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

from lorgnette.config import TARGET_MODULES, TargetModule
from lorgnette.kernels.multi_tensor_copy import CopyOp, MultiTensorCopy
from lorgnette.models.lora_linear import LoraFactors, LoraLinear
from lorgnette.models.qwen2_vl.config import TextConfig
from lorgnette.models.qwen2_vl.text_decoder import Decoder

FUSED_PROJECTIONS: tuple[tuple[TargetModule, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
"""Projections that share an input, and so a matrix: those of Layer.linears, in order."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Which projections are adapted, in every layer, and how."""

    text: TextConfig
    target_modules: tuple[TargetModule, ...]
    rank: int
    scale: float

    def select_adapted(self, group: tuple[TargetModule, ...]) -> tuple[TargetModule, ...]:
        return tuple(target for target in group if target in self.target_modules)

    def count_columns(self, group: tuple[TargetModule, ...]) -> int:
        """Columns that the group's matrix is wider by."""
        return self.rank * len(self.select_adapted(group))

    def in_features(self, target: TargetModule) -> int:
        text = self.text
        return {"o_proj": text.num_heads * text.head_dim, "down_proj": text.intermediate_size}.get(
            target, text.hidden_size
        )

    def out_features(self, target: TargetModule) -> int:
        text = self.text
        narrow = text.num_kv_heads * text.head_dim
        wide = {"q_proj": text.num_heads * text.head_dim, "k_proj": narrow, "v_proj": narrow}
        return (wide | {"gate_proj": text.intermediate_size, "up_proj": text.intermediate_size}).get(
            target, text.hidden_size
        )

    def factor_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the factors by the name they have in PEFT's file, in the order they lie in the vector."""
        return {
            self.format_name(layer, target, factor): (
                (self.rank, self.in_features(target)) if factor == "A" else (self.out_features(target), self.rank)
            )
            for layer in range(self.text.num_layers)
            for group in FUSED_PROJECTIONS
            for factor in "AB"
            for target in self.select_adapted(group)
        }

    def format_name(self, layer: int, target: TargetModule, factor: str) -> str:
        block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        return f"base_model.model.model.language_model.layers.{layer}.{block}.{target}.lora_{factor}.weight"


class FlatLoraParams:
    """The factors' fp32 masters. `values` is the one parameter an optimizer sees; its `.grad` is always there."""

    def __init__(self, shape: AdapterShape, device: torch.device) -> None:
        self.shape = shape
        count = sum(math.prod(size) for size in shape.factor_shapes().values())
        self.values = nn.Parameter(torch.zeros(count, device=device))
        self.values.grad = torch.zeros_like(self.values)
        self._values, self._grads = (
            _split_into_views(shape, self.values.data),
            _split_into_views(shape, self.values.grad),
        )

    @property
    def named_params(self) -> Mapping[str, Tensor]:
        """The masters by the name they have in PEFT's file."""
        return self._values

    @property
    def named_grads(self) -> Mapping[str, Tensor]:
        return self._grads

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the factors' values; names and shapes are those of `shape.sizes()`."""
        for name, view in self._values.items():
            view.copy_(state[name])

    def copy_from(self, values: Tensor) -> None:
        """All of it at once, as `drawn` lays it out."""
        self.values.data.copy_(values)

    def copy_to_cpu(self) -> dict[str, Tensor]:
        """A copy of the masters by name, made in one piece."""
        return _split_into_views(self.shape, self.values.detach().to("cpu", copy=True))

    @staticmethod
    def init_values(shape: AdapterShape, seed: int) -> Tensor:
        """A fresh adapter's values, those that PEFT would draw: A uniform (Kaiming, a = √5), B zero.

        PEFT makes a module's two linear layers, which draw their weights, and then draws A again. What is drawn for
        nothing is drawn in one piece: between two of torch's calls, other threads may keep Python for a while.
        """
        generator = torch.Generator().manual_seed(seed)
        values = torch.zeros(sum(math.prod(size) for size in shape.factor_shapes().values()))
        views = _split_into_views(shape, values)
        for layer in range(shape.text.num_layers):
            for target in TARGET_MODULES:
                if target not in shape.target_modules:
                    continue
                a, b = (views[shape.format_name(layer, target, factor)] for factor in "AB")
                torch.empty(a.numel() + b.numel()).uniform_(generator=generator)
                a.uniform_(-1 / math.sqrt(a.shape[1]), 1 / math.sqrt(a.shape[1]), generator=generator)
        return values

    def attach(self, decoder: Decoder) -> MultiTensorCopy:
        """Make the decoder compute with these factors, and add their gradients here. Returns what brings the masters
        where they are computed with: made once here, to be made again whenever they change."""
        moves: list[CopyOp] = []
        for i, layer in enumerate(decoder.layers):
            for linear, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
                if self.shape.select_adapted(group):
                    moves += linear.attach_adapter(self._build_factors(i, group), self.shape.scale)
        spread = MultiTensorCopy(self.values.data, moves)
        spread()
        return spread

    def _build_factors(self, layer: int, group: tuple[TargetModule, ...]) -> LoraFactors:
        adapted = self.shape.select_adapted(group)
        ends = list(accumulate(self.shape.out_features(target) for target in group))
        rows = {t: slice(end - self.shape.out_features(t), end) for t, end in zip(group, ends, strict=True)}

        def joined(views: Mapping[str, Tensor], flat: Tensor) -> Tensor:
            first = views[self.shape.format_name(layer, adapted[0], "A")]
            columns = self.shape.count_columns(group)
            return flat.as_strided((columns, first.shape[1]), (first.shape[1], 1), first.storage_offset())

        def each(views: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            return tuple(views[self.shape.format_name(layer, target, "B")] for target in adapted)

        assert self.values.grad is not None
        return LoraFactors(
            tuple(rows[target] for target in adapted),
            joined(self._values, self.values.data), each(self._values),
            joined(self._grads, self.values.grad), each(self._grads),
        )  # fmt: skip


def _split_into_views(shape: AdapterShape, flat: Tensor) -> dict[str, Tensor]:
    views, at = {}, 0
    for name, size in shape.factor_shapes().items():
        views[name] = flat[at : at + math.prod(size)].view(size)
        at += math.prod(size)
    return views


def allocate_linear(
    shape: AdapterShape, group: tuple[TargetModule, ...], rng_stream: int, device: torch.device, dtype: torch.dtype
) -> LoraLinear:
    """An empty matrix for the group's projections, with columns for its factors."""
    inputs = shape.in_features(group[0])
    outputs = sum(shape.out_features(target) for target in group)
    weight = torch.empty(outputs, inputs + shape.count_columns(group), device=device, dtype=dtype)
    bias = torch.empty(outputs, device=device, dtype=dtype) if group[0] == "q_proj" else None
    return LoraLinear(weight, bias, inputs, rng_stream)
