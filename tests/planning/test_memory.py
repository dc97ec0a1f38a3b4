"""The prediction matches measurements, and counts what the engines really save."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES, LoraSettings, ProcessorSettings
from lorgnette.engine.batch_shapes import BatchShape
from lorgnette.engine.cuda_graphs import StaticInputs
from lorgnette.engine.loading import load_decoder
from lorgnette.engine.packed_attention import build_segments
from lorgnette.engine.peft_engine import add_adapter, load_base_model
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.model_config import TextConfig, VisionConfig
from lorgnette.models.qwen2_vl.text_decoder import Decoder, LayerActivations
from lorgnette.models.registry import FAMILIES, parse_configs, parse_sizes
from lorgnette.planning import limits, memory
from lorgnette.planning.memory import (
    GIB,
    MemoryFit,
    Workload,
    compute_free_bytes,
    compute_left_bytes,
    compute_usable_bytes,
    find_fit,
    min_recompute_layers,
    predict_memory,
)
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example

TEXT = TextConfig(28, 1536, 12, 2, 128, 8960, 151936, 1e-6, 1e6, (16, 24, 24), tie_word_embeddings=True)
VISION = VisionConfig(32, 1280, 16, 5120, 1536, 14, 2, 2, 3)
ADAPTER = AdapterShape(TEXT, TARGET_MODULES, 64, 1.0)
FAST = Workload("fast", ADAPTER, VISION, has_dropout=True, tokens=2100, labels=224, num_graphs=2)
"""The tutorial's step at Qwen2-VL-2B's shapes."""
LARGE = replace(FAST, tokens=8300, labels=868)
REFERENCE = replace(FAST, engine="reference", tokens=2180, labels=216, feature_tokens=50_000)


@pytest.mark.parametrize(("workload", "gib"), [(REFERENCE, 13.0), (replace(REFERENCE, has_dropout=False), 11.8)])
def test_the_prediction_is_within_7_percent_of_measurements(workload: Workload, gib: float) -> None:
    """torch.cuda.max_memory_allocated on one NVIDIA H200, torch 2.11."""
    assert abs(predict_memory(workload).allocated_bytes / GIB / gib - 1) < 0.07


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": replace(ADAPTER, rank=512)}, {"tokens": 3000}, {"recompute_layers": 14}, {"bytes_per_value": 4},
        {"adapter": replace(ADAPTER, target_modules=("q_proj",))},
    ],
    ids=str,
)  # fmt: skip
def test_another_run_differs_by_more_than_7_percent(change: dict[str, Any]) -> None:
    """Negative control: 7 % tell runs apart."""
    workload = REFERENCE if "bytes_per_value" in change else FAST
    assert abs(predict_memory(replace(workload, **change)).peak_bytes / predict_memory(workload).peak_bytes - 1) > 0.07


def test_autograd_saves_111_kb_per_token_and_layer() -> None:
    """Counted by saved_tensors_hooks on transformers' modules with PEFT's fp32 adapter."""
    saved = memory._count_saved_reference(replace(REFERENCE, has_dropout=False))
    assert round(saved / TEXT.num_layers, -3) == 111_000


@pytest.mark.parametrize(("model_type", "tolerance"), [("qwen3_vl", 0.02), ("qwen3_vl_moe", 0.02), ("qwen3_5", 0.05)])
def test_what_autograd_saves_is_predicted_in_every_kind_of_layer(
    tiny_family: Callable[[str], Path], model_type: str, tolerance: float
) -> None:
    """Counted by saved_tensors_hooks in the layers of the reference engine, on a CPU in bf16."""
    checkpoint = BaseCheckpoint.from_folder(tiny_family(model_type))
    model = load_base_model(checkpoint, torch.device("cpu"), torch.bfloat16)
    lora = LoraSettings(rank=8, dropout=0)
    decoder = add_adapter(model, checkpoint.family, lora, seed=0).get_base_model().get_submodule("model.language_model")
    text, vision = parse_sizes(checkpoint.load_hf_config())
    params = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # alive, so that no address is used twice
        return tensor

    def count(*_: object) -> None:
        sizes.append(sum(storage.nbytes() for address, storage in saved.items() if address not in params))

    decoder.layers[0].register_forward_pre_hook(count)
    decoder.layers[-1].register_forward_hook(count)
    tokens, width = 256, text.hidden_size
    context = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with context, torch.autocast("cpu", dtype=torch.bfloat16):
        decoder(
            inputs_embeds=torch.randn(1, tokens, width).bfloat16(), attention_mask=None, use_cache=False,
            position_ids=torch.arange(tokens).expand(3, 1, -1),
            segments=build_segments([0, tokens], torch.device("cpu")),
        )  # fmt: skip
    adapter = AdapterShape.from_settings(text, lora)
    workload = Workload("reference", adapter, vision, False, tokens, labels=1)
    # A CPU's attention copies queries, keys and values; it has no tables of cosines of its own.
    num_full = text.num_layers - (len(text.linear_attention.layers) if text.linear_attention else 0)
    copies = num_full * 2 * (text.num_heads + 2 * text.num_kv_heads - 2) * text.head_dim
    predicted = tokens * (memory._count_saved_reference(workload) + copies) + 2 * adapter.num_params
    assert predicted / (sizes[1] - sizes[0]) == pytest.approx(1, abs=tolerance)


@pytest.fixture(params=["qwen2_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest, tiny: Path, tiny_family: Callable[[str], Path]) -> Path:
    return tiny if request.param == "qwen2_vl" else tiny_family(request.param)


@pytest.fixture(params=[TARGET_MODULES, ("q_proj", "v_proj")], ids=len)
def workload(request: pytest.FixtureRequest, folder: Path) -> Workload:
    text, vision = parse_configs(BaseCheckpoint.from_folder(folder).load_hf_config())
    return Workload("fast", AdapterShape(text, request.param, 8, 1.0), vision, has_dropout=False, tokens=100, labels=10)


@pytest.fixture
def decoder(workload: Workload, folder: Path) -> Decoder:
    """In float32, so that every value has four bytes."""
    cpu = torch.device("cpu")
    decoder = load_decoder(BaseCheckpoint.from_folder(folder), workload.adapter, cpu, torch.float32)
    FlatLoraParams(workload.adapter, cpu).attach(decoder)
    return decoder


def test_predicted_weights_equal_the_decoders(decoder: Decoder, workload: Workload) -> None:
    linears = [t for linear in decoder.linears for t in (linear.weight, linear.bias, linear._a) if t is not None]
    norms = [norm for layer in decoder.layers for norm in layer.norms.values()]
    count = sum(tensor.numel() for tensor in [*linears, *norms, decoder.norm, decoder.embed_tokens])
    items = predict_memory(workload).phases["backward"]
    assert items["weights"] == 2 * count
    adapter = FlatLoraParams(workload.adapter, torch.device("cpu"))
    assert items["adapter"] == 4 * 4 * adapter.values.numel()  # value, gradient, AdamW's two moments


def test_predicted_activations_equal_the_saved_ones(
    decoder: Decoder, workload: Workload, folder: Path, conversations: list[Example]
) -> None:
    processor = Processor.from_folder(folder, ProcessorSettings(image_size=(28, 28)))
    batch = pack([processor.encode(conversations[0])], 1)
    inputs = StaticInputs(BatchShape.from_batch(batch), decoder)
    inputs.copy_from(batch)
    activations = decoder.forward(inputs.x, inputs.batch, None).activations
    first, *_, last = (_count_bytes(saved, workload) for saved in activations)
    tokens, last_layer_tokens = len(inputs.x), len(inputs.batch.last_attention_plan.query_indices)
    assert first == tokens * memory._count_saved_fast(workload)
    assert last == memory._count_saved_last_layer(workload, tokens, last_layer_tokens) < first
    recomputed, *_ = decoder.forward(inputs.x, inputs.batch, None, recompute_layers=1).activations
    assert isinstance(recomputed, tuple)


def _count_bytes(saved: object, workload: Workload) -> int:
    """With values of two bytes, as on a GPU, where attention also saves a log-sum-exp per token and head."""
    assert isinstance(saved, LayerActivations)
    tensors = [value for field in fields(saved) if isinstance(value := getattr(saved, field.name), Tensor)]
    values, scales = (sum(t.numel() for t in tensors if t.dim() == dims) for dims in (2, 1))
    return 2 * values + 4 * scales + 4 * workload.text.num_heads * len(saved.attn_ext)


def test_no_more_layers_are_recomputed_than_needed() -> None:
    peak = predict_memory(LARGE).peak_bytes
    assert min_recompute_layers(LARGE, peak) == 0
    layers = min_recompute_layers(LARGE, peak - GIB)
    assert 0 < layers < 28
    enough, too_few = (predict_memory(replace(LARGE, recompute_layers=n)).peak_bytes for n in (layers, layers - 1))
    assert enough <= peak - GIB < too_few
    assert min_recompute_layers(LARGE, 4 * GIB) is None, "not even all layers are enough"
    assert min_recompute_layers(REFERENCE, 13 * GIB) is None, "the reference engine cannot recompute"
    assert predict_memory(REFERENCE).allocated_bytes / GIB == pytest.approx(13.2, abs=0.05)


def test_tokens_are_reduced_before_layers_are_recomputed() -> None:
    def fit(gib: float, longest_example: int) -> MemoryFit | None:
        return find_fit(LARGE, longest_example, int(gib * GIB))

    unchanged, fewer_tokens, recomputed = fit(18, 150), fit(12, 150), fit(6, 4000)
    assert unchanged is not None
    assert (unchanged.max_tokens, unchanged.recompute_layers) == (8300, 0)
    assert unchanged.peak_bytes == predict_memory(LARGE).peak_bytes
    assert fewer_tokens is not None
    assert 150 < fewer_tokens.max_tokens < 8300
    assert fewer_tokens.recompute_layers == 0
    assert recomputed is not None
    assert recomputed.max_tokens == 4000, "no less than the longest example"
    assert recomputed.recompute_layers > 0
    assert max(fewer_tokens.peak_bytes / 12, recomputed.peak_bytes / 6) <= GIB
    assert fit(4, 150) is None


def test_sharded_layers_are_counted_where_they_are() -> None:
    """Over two GPUs a half of [W | B] of every layer, and two layers whole; all else stays."""
    whole, sharded = (predict_memory(replace(LARGE, num_shards=n)).phases["backward"] for n in (1, 2))
    layer = 2 * (2048 * (1536 + 3 * 64) + 1536 * (1536 + 64) + 2 * 8960 * (1536 + 2 * 64) + 1536 * (8960 + 64))
    assert whole["weights"] - sharded["weights"] == 14 * layer
    assert sharded["gathered layers"] == 2 * layer
    assert {name: whole[name] for name in whole if name not in ("weights", "allocator")} == {
        name: sharded[name] for name in sharded if name not in ("weights", "allocator", "gathered layers")
    }
    assert "gathered layers" not in whole
    start = predict_memory(replace(LARGE, num_shards=2, loads_tower=True)).phases["features"]
    assert all(start[name] == sharded[name] for name in ("weights", "gathered layers"))
    halves = [predict_memory(replace(REFERENCE, num_shards=n)).peak_bytes for n in (1, 2, 4)]
    assert halves[0] > halves[1] > halves[2]


def test_several_gpus_leave_less_for_torch() -> None:
    """NCCL's buffers, until it has them, and the graphs that are captured beside the first."""
    graphs = [compute_free_bytes(GIB, has_context=True, num_gpus=n) for n in (1, 2, 8)]
    assert graphs[0] > graphs[1] == graphs[2]
    lost = [compute_free_bytes(8 * GIB, has_context=False, num_gpus=n) for n in (1, 2)]
    assert lost[0] - lost[1] == compute_usable_bytes(8.0) - compute_usable_bytes(8.0, 2) > GIB // 2
    assert compute_left_bytes(GIB) - compute_left_bytes(GIB, 2) == graphs[0] - graphs[1]


def test_what_fits_no_card_fits_sharded_over_several() -> None:
    """Qwen2.5-VL-32B in bf16: 62 GB of layers, of which each of four cards of 48 GiB holds a quarter."""
    size = next(s for s in FAMILIES["qwen2_5_vl"].sizes if "32B" in s.names[0])
    text, vision = parse_sizes(size.config)
    large = replace(LARGE, adapter=replace(ADAPTER, text=text), vision=vision, loads_tower=True, feature_tokens=50_000)
    assert find_fit(large, 4000, compute_usable_bytes(48.0)) is None
    assert find_fit(replace(large, num_shards=2), 4000, compute_usable_bytes(48.0)) is None
    assert find_fit(replace(large, num_shards=4), 4000, compute_usable_bytes(48.0)) is not None


def test_features_that_do_not_fit_are_on_the_host() -> None:
    workload = replace(FAST, feature_tokens=50_000_000)
    assert predict_memory(workload).peak_bytes > 140 * GIB
    fit = find_fit(workload, 150, compute_usable_bytes(24.0))
    assert fit is not None
    assert fit.peak_bytes < compute_usable_bytes(24.0)


def test_an_eval_loss_can_be_the_peak() -> None:
    workload = replace(FAST, eval_tokens=16_000, eval_labels=1600)
    assert predict_memory(workload).peak_phase == "eval"
    assert predict_memory(workload.limit_tokens(2100)).peak_phase == "backward"


def test_a_trained_tower_saves_activations_instead_of_features() -> None:
    items = predict_memory(replace(REFERENCE, trained_patches=6400)).phases["backward"]
    assert items["features"] == 0
    assert items["vision activations"] > GIB


def test_beside_float16_the_tower_is_in_float32(tiny: Path) -> None:
    """The reference engine's whole tower, the fast one's residual stream."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    _, vision = parse_sizes(checkpoint.load_hf_config())
    visual = load_base_model(checkpoint, torch.device("cpu"), torch.float16).get_submodule("model.visual")
    held = sum(parameter.nbytes for parameter in visual.parameters())
    phases = predict_memory(replace(REFERENCE, vision=vision, is_float16=True)).phases
    assert held == phases["features"]["vision tower"] == phases["backward"]["vision tower"]
    assert held == 2 * predict_memory(replace(REFERENCE, vision=vision)).phases["backward"]["vision tower"]

    in_bfloat16, in_float16 = (
        predict_memory(replace(FAST, loads_tower=True, feature_tokens=50_000, is_float16=value)).phases
        for value in (False, True)
    )
    more = in_float16["features"]["patches"] - in_bfloat16["features"]["patches"]
    assert more == 2 * limits.MAX_PATCHES_PER_CALL * VISION.embed_dim
    assert in_float16["backward"] == in_bfloat16["backward"]
