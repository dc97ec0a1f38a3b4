"""Loads the fast engine's model: decoder, adapter and image features, without transformers and PEFT."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES, TargetModule
from lorgnette.device import split_each_row
from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.features.disk_cache import FeatureDiskCache
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.kernels.nf4 import Nf4Matrix
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import FUSED_PROJECTIONS, AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD, name_linear
from lorgnette.models.lora_linear import FrozenFactors, LoraLinear, QuantizedWeight
from lorgnette.models.networks import Decoder, DecoderLayer, find_decoder_classes, find_tower_class
from lorgnette.models.registry import find_unsupported_feature, parse_configs
from lorgnette.models.sharded_weight import ShardedLayers, ShardedWeight
from lorgnette.models.weight_loader import Destination, WeightRows, list_nf4_modules, load_weights_into
from lorgnette.processing.image_processor import ImageProcessor

NO_MODULES: Mapping[str, bool] = MappingProxyType({})
_ALIGNMENT = 256
"""Values between the first of two tensors in one piece of memory, or a multiple: 512 bytes, as torch aligns."""


@dataclass(frozen=True)
class FastModel:
    """A loaded model. adapter: None for a base model."""

    decoder: Decoder
    adapter: FlatLoraParams | None
    features: Features


def load_fast_model(
    checkpoint: BaseCheckpoint, saved: SavedAdapter | None, features: Features, dtype: torch.dtype
) -> FastModel:
    """The model with a saved adapter, for inference. Raises LorgnetteError if the files do not fit."""
    text, device = checkpoint.load_text_config(), features.device
    if saved is None:
        return FastModel(load_decoder(checkpoint, AdapterShape.empty(text), device, dtype), None, features)
    shape = saved.build_shape(text)
    decoder, adapter = load_decoder(checkpoint, shape, device, dtype), FlatLoraParams(shape, device)
    adapter.load_state_dict(saved.state)
    adapter.attach(decoder)
    return FastModel(decoder, adapter, features)


def load_decoder_with_adapters(
    checkpoint: BaseCheckpoint, adapters: Sequence[SavedAdapter], device: torch.device, dtype: torch.dtype
) -> tuple[Decoder, tuple[int, ...]]:
    """(decoder, rank of each adapter), for inference: one base model with adapters side by side.

    They are one adapter to the decoder: its rank is the sum of theirs, in order, and its modules are those that any of
    them has. A mask of the ranks selects one (`LoraLinear.forward`). Raises LorgnetteError if the files do not fit.
    """
    text = checkpoint.load_text_config()
    shapes = [saved.build_shape(text) for saved in adapters]
    ranks = tuple(shape.rank for shape in shapes)
    if not shapes:
        return load_decoder(checkpoint, AdapterShape.empty(text), device, dtype), ranks
    for saved in adapters:
        if not all(bool(tensor.to(dtype).isfinite().all()) for tensor in saved.state.values()):
            fault = f"the adapter has values that are infinite or not a number in {str(dtype).removeprefix('torch.')}"
            raise LorgnetteError(fault, where=str(saved.folder), hint="use an earlier checkpoint of its training")
    targets = tuple(t for t in TARGET_MODULES if any(t in shape.target_modules for shape in shapes))
    joint = AdapterShape(text, targets, sum(ranks), 1.0)
    decoder = load_decoder(checkpoint, joint, device, dtype)
    for i, layer in enumerate(decoder.layers):
        for linear, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
            if adapted := joint.select_adapted(group):
                rows = joint.split_rows(group)
                linear.write_factors([_join_factors(adapters, shapes, i, t, rows[t]) for t in adapted])
    return decoder, ranks


def _join_factors(
    adapters: Sequence[SavedAdapter], shapes: Sequence[AdapterShape], layer: int, target: TargetModule, rows: slice
) -> FrozenFactors:
    """One projection's factors of all adapters, side by side; zeros for one that does not adapt it."""
    a, b = list[Tensor](), list[Tensor]()
    for saved, shape in zip(adapters, shapes, strict=True):
        if target in shape.target_modules:
            factor_a, factor_b = (saved.state[shape.format_name(layer, target, factor)] for factor in "AB")
            a.append(factor_a.float() * shape.scale)
            b.append(factor_b.float())
        else:
            a.append(torch.zeros(shape.rank, shape.in_features(target)))
            b.append(torch.zeros(shape.out_features(target), shape.rank))
    return FrozenFactors(rows, torch.cat(a), torch.cat(b, 1))


def explain_unsupported_inference(checkpoint: BaseCheckpoint, saved: SavedAdapter | None) -> str | None:
    """Why the fast engine cannot run this model and adapter, or None if it can."""
    config = checkpoint.load_hf_config()
    reason = find_unsupported_feature(config)
    return reason or (saved.explain_unsupported(*parse_configs(config)) if saved else None)


def build_features(
    checkpoint: BaseCheckpoint,
    image_processor: ImageProcessor,
    device: torch.device,
    dtype: torch.dtype,
    disk_cache: FeatureDiskCache | None = None,
) -> Features:
    """Features of a frozen vision tower, loaded when the first image needs it."""
    tower_class = find_tower_class(checkpoint.family.model_type)
    tower = LazyTower(device, dtype, lambda: tower_class.from_checkpoint(checkpoint, device, dtype))
    return Features(tower, image_processor, is_live=False, disk_cache=disk_cache)


def load_decoder(
    checkpoint: BaseCheckpoint,
    shape: AdapterShape,
    device: torch.device,
    dtype: torch.dtype,
    *,
    shard_over: World | None = None,
) -> Decoder:
    """The decoder with room for an adapter of this shape; `FlatLoraParams.attach` adds the adapter.

    shard_over: as of `allocate_decoder`. Raises LorgnetteError if the files are broken or do not fit.
    """
    decoder, weights = allocate_decoder(shape, device, dtype, list_nf4_modules(checkpoint), shard_over)
    load_weights_into(checkpoint, weights, quantize_as=dtype)
    return decoder


def allocate_decoder(
    shape: AdapterShape,
    device: torch.device,
    dtype: torch.dtype,
    nf4_modules: Mapping[str, bool] = NO_MODULES,
    shard_over: World | None = None,
) -> tuple[Decoder, dict[str, Destination]]:
    """The decoder with uninitialized memory, and views of its weights by their names in the checkpoint.

    nf4_modules: the projections in NF4, and whether with double quantization. shard_over: the ranks over which the
    layers' matrices are cut by rows, none of which is in NF4; None: this process has them whole.
    """
    assert not (nf4_modules and shard_over)
    text = shape.text
    decoder_class, layer_class = find_decoder_classes(text.model_type)
    widths = (shape.in_features(group[0]) + shape.count_columns(group) for group in FUSED_PROJECTIONS)
    heights = (sum(map(shape.out_features, group)) for group in FUSED_PROJECTIONS)
    size = max(map(operator.mul, heights, widths)) if nf4_modules else 0
    scratch = torch.empty(size, device=device, dtype=dtype)
    shards = None if shard_over is None else ShardedLayers(shard_over, scratch.new_empty)
    allocators: Sequence[Callable[..., Tensor]] = [scratch.new_empty] * text.num_layers
    if not nf4_modules and shards is None:
        # All matrices in one piece: torch would round each up, and put some into larger pieces that nobody else can
        # use then.
        matrices = list[tuple[int, ...]]()
        _allocate_layer(layer_class, shape, 0, partial(_record_size, matrices), scratch, nf4_modules, None)
        length = sum(-(-math.prod(size) // _ALIGNMENT) * _ALIGNMENT for size in matrices)
        rows = split_each_row(scratch.new_empty(text.num_layers, length), matrices, _ALIGNMENT)
        allocators = [partial(_take_tensor, iter(row)) for row in rows]
    layers = [
        _allocate_layer(layer_class, shape, i, allocate, scratch, nf4_modules, shards)
        for i, allocate in enumerate(allocators)
    ]
    embedding = torch.empty(text.vocab_size, text.hidden_size, device=device, dtype=dtype)
    lm_head = embedding if text.tie_word_embeddings else torch.empty_like(embedding)
    norm = torch.empty(text.hidden_size, device=device, dtype=dtype)
    weights: dict[str, Tensor | Nf4Matrix | WeightRows] = {
        EMBEDDING: embedding,
        "model.language_model.norm.weight": norm,
    }
    if not text.tie_word_embeddings:
        weights[LM_HEAD] = lm_head

    # Each weight of a layer is a view of its fused matrices.
    for i, layer in enumerate(layers):
        prefix = f"model.language_model.layers.{i}"
        weights |= {f"{prefix}.{name}.weight": norm_weight for name, norm_weight in layer.norms.items()}
        for linear, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
            sizes = list(map(shape.out_features, group))
            names = [f"{prefix}.{name_linear(target)}" for target in group]
            weights |= {f"{name}.weight": part for name, part in zip(names, _split_weight(linear, sizes), strict=True)}
            if linear.bias is not None:
                weights |= {
                    f"{name}.bias": part for name, part in zip(names, torch.split(linear.bias, sizes), strict=True)
                }
    return decoder_class(text, embedding, layers, norm, lm_head, shards), weights


def _record_size(sizes: list[tuple[int, ...]], *size: int) -> Tensor:
    """A tensor without memory of this size, which is added to the sizes."""
    sizes.append(size)
    return torch.empty(size, device="meta")


def _take_tensor(tensors: Iterator[Tensor], *size: int) -> Tensor:
    """The next of them, which has this size."""
    tensor = next(tensors)
    assert tensor.shape == size
    return tensor


def _split_weight(linear: LoraLinear, sizes: list[int]) -> Sequence[Destination]:
    """The base model's matrix of every projection."""
    if isinstance(linear.weight, QuantizedWeight):
        return linear.weight.parts
    if isinstance(linear.weight, ShardedWeight):
        return _split_rows(linear.weight, linear.in_features, sizes)
    weight = linear.weight[:, : linear.in_features]
    return torch.split(weight, sizes) if len(sizes) > 1 else [weight]


def _split_rows(weight: ShardedWeight, in_features: int, sizes: list[int]) -> list[WeightRows]:
    """The rows of every projection that this rank keeps; none of some."""
    parts, first = [], 0
    for size in sizes:
        start, end = (min(max(row - first, 0), size) for row in (weight.rows.start, weight.rows.stop))
        begin = first + start - weight.rows.start
        parts.append(WeightRows(weight.own_rows[begin : begin + end - start, :in_features], start, (size, in_features)))
        first += size
    return parts


def _allocate_layer(
    layer_class: type[DecoderLayer],
    shape: AdapterShape,
    number: int,
    allocate: Callable[..., Tensor],
    scratch: Tensor,
    nf4_modules: Mapping[str, bool],
    shards: ShardedLayers | None,
) -> DecoderLayer:
    """allocate: gives a matrix of some rows and columns, or a vector. scratch: as of QuantizedWeight, on the device of
    the weights."""
    text, linears = shape.text, []
    # Seven dropout streams per layer, one for each projection, so that no two masks of the model are the same.
    for group, first_stream in zip(FUSED_PROJECTIONS, (0, 3, 4, 6), strict=True):
        in_features, num_columns = shape.in_features(group[0]), shape.count_columns(group)
        sizes = {f"model.language_model.layers.{number}.{name_linear(t)}": shape.out_features(t) for t in group}
        out_features = sum(sizes.values())
        weight: Tensor | QuantizedWeight | ShardedWeight
        if shards is not None:
            weight = shards.allocate_weight(number, out_features, in_features + num_columns)
        elif nf4_modules.keys().isdisjoint(sizes):
            # The fused matrix of the group's projections, with columns for their B factors.
            weight = allocate(out_features, in_features + num_columns)
        else:
            parts = [
                Nf4Matrix.allocate((size, in_features), scratch.device, is_nested=nf4_modules[name])
                if name in nf4_modules
                else allocate(size, in_features)
                for name, size in sizes.items()
            ]
            weight = QuantizedWeight(tuple(parts), allocate(out_features, num_columns), scratch)
        bias = allocate(out_features) if text.has_qkv_bias and group[0] == "q_proj" else None
        scaled_a = allocate(num_columns, in_features)
        linears.append(LoraLinear(weight, bias, in_features, 7 * number + first_stream, scaled_a))
    qkv, o, gate_up, down = linears
    norm1, norm2 = (allocate(text.hidden_size) for _ in range(2))
    head_norms = [allocate(2, text.head_dim)] if text.has_qk_norm else []
    return layer_class(text, norm1, qkv, o, norm2, gate_up, down, *head_norms)
