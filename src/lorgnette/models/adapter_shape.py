"""Shapes of the LoRA factors: which projections are adapted, at which rank and scale. Needs no torch."""

import math
import re
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from lorgnette.config import LoraSettings, TargetModule
from lorgnette.models.family import name_linear
from lorgnette.models.registry import FAMILIES, TextConfig

FUSED_PROJECTIONS: tuple[tuple[TargetModule, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
"""Projections that share an input, stored as one matrix: those of DecoderLayer.linears, in order."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The adapter of every decoder layer. scale: the factor of B·A·x."""

    text: TextConfig
    target_modules: tuple[TargetModule, ...]
    rank: int
    scale: float

    @classmethod
    def from_settings(cls, text: TextConfig, lora: LoraSettings) -> "AdapterShape":
        return cls(text, lora.target_modules, lora.rank, compute_scale(lora.rank, float(lora.alpha), lora.use_rslora))

    @classmethod
    def empty(cls, text: TextConfig) -> "AdapterShape":
        """No adapter: the fused matrices get no extra columns."""
        return cls(text, (), 1, 1.0)

    @property
    def num_params(self) -> int:
        """Values in all factors together."""
        return self.rank * sum(map(sum, self.list_adapted_linears().values()))

    def list_adapted_linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every adapted linear layer by its name, in the reference engine too."""
        return _list_adapted_linears(self.text, self.target_modules)

    def select_adapted(self, group: tuple[TargetModule, ...]) -> tuple[TargetModule, ...]:
        return tuple(target for target in group if target in self.target_modules)

    def count_columns(self, group: tuple[TargetModule, ...]) -> int:
        """Extra columns of the group's fused matrix."""
        return self.rank * len(self.select_adapted(group))

    def split_rows(self, group: tuple[TargetModule, ...]) -> dict[TargetModule, slice]:
        """Each projection's rows of the group's fused matrix."""
        ends = accumulate(map(self.out_features, group))
        return {t: slice(end - self.out_features(t), end) for t, end in zip(group, ends, strict=True)}

    def in_features(self, target: TargetModule) -> int:
        return self.text.linear_shapes[target][1]

    def out_features(self, target: TargetModule) -> int:
        return self.text.linear_shapes[target][0]

    def factor_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the factors by their names in PEFT's file, in the order of the flat vector."""
        r, layers = self.rank, range(self.text.num_layers)
        factors = [(t, factor) for group in FUSED_PROJECTIONS for factor in "AB" for t in self.select_adapted(group)]
        shapes = [(r, self.in_features(t)) if factor == "A" else (self.out_features(t), r) for t, factor in factors]
        return {self.format_name(i, *name): shape for i in layers for name, shape in zip(factors, shapes, strict=True)}

    def format_name(self, layer: int, target: TargetModule, factor: str) -> str:
        return f"base_model.model.model.language_model.layers.{layer}.{name_linear(target)}.lora_{factor}.weight"


@cache
def _list_adapted_linears(text: TextConfig, targets: tuple[TargetModule, ...]) -> dict[str, tuple[int, int]]:
    pattern = re.compile(FAMILIES[text.model_type].build_target_pattern(targets, ("language",)))
    modules = {name.removesuffix(".weight"): shape for name, shape in text.list_weight_shapes().items()}
    return {
        name: (shape[0], shape[1]) for name, shape in modules.items() if len(shape) == 2 and pattern.fullmatch(name)
    }


def compute_scale(rank: int, alpha: float, use_rslora: bool) -> float:
    """alpha / rank, or alpha / √rank with rank-stabilized LoRA (Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)
