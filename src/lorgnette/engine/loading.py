"""Loads the fast engine's model: decoder, adapter and image features, without transformers and PEFT."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lorgnette.features.disk_cache import FeatureDiskCache
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import FUSED_PROJECTIONS, AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD, name_linear
from lorgnette.models.lora_linear import LoraLinear
from lorgnette.models.networks import Decoder, DecoderLayer, find_decoder_classes, find_tower_class
from lorgnette.models.registry import find_unsupported_feature, parse_configs
from lorgnette.models.weight_loader import load_weights_into
from lorgnette.processing.image_processor import ImageProcessor


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


def load_decoder(checkpoint: BaseCheckpoint, shape: AdapterShape, device: torch.device, dtype: torch.dtype) -> Decoder:
    """The decoder with room for an adapter of this shape; `FlatLoraParams.attach` adds the adapter.

    Raises LorgnetteError if the files are broken or do not fit.
    """
    decoder, weights = allocate_decoder(shape, device, dtype)
    load_weights_into(checkpoint, weights)
    return decoder


def allocate_decoder(
    shape: AdapterShape, device: torch.device, dtype: torch.dtype
) -> tuple[Decoder, dict[str, Tensor]]:
    """The decoder with uninitialized memory, and views of its weights by their names in the checkpoint."""
    text = shape.text
    decoder_class, layer_class = find_decoder_classes(text.model_type)
    layers = [_allocate_layer(layer_class, shape, i, device, dtype) for i in range(text.num_layers)]
    embedding = torch.empty(text.vocab_size, text.hidden_size, device=device, dtype=dtype)
    lm_head = embedding if text.tie_word_embeddings else torch.empty_like(embedding)
    norm = torch.empty(text.hidden_size, device=device, dtype=dtype)
    weights = {EMBEDDING: embedding, "model.language_model.norm.weight": norm}
    if not text.tie_word_embeddings:
        weights[LM_HEAD] = lm_head

    # Each weight of a layer is a view of its fused matrices.
    for i, layer in enumerate(layers):
        prefix = f"model.language_model.layers.{i}"
        weights |= {f"{prefix}.{name}.weight": norm_weight for name, norm_weight in layer.norms.items()}
        for linear, group in zip(layer.linears, FUSED_PROJECTIONS, strict=True):
            end = 0
            for target in group:
                rows = slice(end, end + shape.out_features(target))
                end = rows.stop
                weights[f"{prefix}.{name_linear(target)}.weight"] = linear.weight[rows, : linear.in_features]
                if linear.bias is not None:
                    weights[f"{prefix}.{name_linear(target)}.bias"] = linear.bias[rows]
    return decoder_class(text, embedding, layers, norm, lm_head), weights


def _allocate_layer(
    layer_class: type[DecoderLayer], shape: AdapterShape, number: int, device: torch.device, dtype: torch.dtype
) -> DecoderLayer:
    text, linears = shape.text, []
    # Seven dropout streams per layer, one for each projection, so that no two masks of the model are the same.
    for group, first_stream in zip(FUSED_PROJECTIONS, (0, 3, 4, 6), strict=True):
        # The fused matrix of the group's projections, with columns for their B factors.
        in_features, out_features = shape.in_features(group[0]), sum(map(shape.out_features, group))
        weight = torch.empty(out_features, in_features + shape.count_columns(group), device=device, dtype=dtype)
        has_bias = text.has_qkv_bias and group[0] == "q_proj"
        bias = torch.empty(out_features, device=device, dtype=dtype) if has_bias else None
        linears.append(LoraLinear(weight, bias, in_features, 7 * number + first_stream))
    qkv, o, gate_up, down = linears
    norm1, norm2 = (torch.empty(text.hidden_size, device=device, dtype=dtype) for _ in range(2))
    head_norms = [torch.empty(2, text.head_dim, device=device, dtype=dtype)] if text.has_qk_norm else []
    return layer_class(text, norm1, qkv, o, norm2, gate_up, down, *head_norms)
