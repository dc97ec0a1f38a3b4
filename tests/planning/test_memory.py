"""The prediction is what was measured, and is made of what the engines really keep."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TARGET_MODULES, ProcessorSettings
from lorgnette.engine import fast
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.errors import LorgnetteError
from lorgnette.features import image_features
from lorgnette.lora import flat_params
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl import text_decoder as decoders
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, load_hf_config
from lorgnette.models.qwen2_vl.text_decoder import Decoder, LayerActivations
from lorgnette.planning import memory
from lorgnette.planning.memory import (
    GIB,
    MemoryFit,
    Workload,
    compute_usable_bytes,
    find_fit,
    min_recompute_layers,
    pad_tokens,
    predict_memory,
)
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example

TEXT = TextConfig(28, 1536, 12, 2, 128, 8960, 151936, 1e-6, 1e6, (16, 24, 24), tie_word_embeddings=True)
VISION = VisionConfig(32, 1280, 16, 5120, 1536, 14, 2, 2, 3)
FAST = Workload("fast", TEXT, VISION, TARGET_MODULES, 64, has_dropout=True, tokens=2100, labels=224, num_graphs=2)
"""The tutorial's step at Qwen2-VL-2B's shapes."""
LARGE = replace(FAST, rows=8300, labels=868)
REFERENCE = replace(FAST, engine="reference", rows=2180, labels=216, feature_rows=50_000)


@pytest.mark.parametrize(
    ("work", "gib"),
    [
        (REFERENCE, 13.0),
        (replace(REFERENCE, dropout=False), 11.8),
    ],
)
def test_within_seven_hundredths_of_what_was_measured(work: Workload, gib: float) -> None:
    """torch.cuda.max_memory_allocated on one NVIDIA H200, torch 2.11."""
    assert abs(predict_memory(work).peak_bytes / GIB / gib - 1) < 0.07


@pytest.mark.parametrize(
    "change", [{"rank": 512}, {"rows": 3000}, {"again": 14}, {"number_bytes": 4}, {"targets": ("q_proj",)}]
)
def test_another_run_is_another_prediction(change: dict[str, Any]) -> None:
    """The negative control: seven hundredths tell runs apart."""
    work = REFERENCE if "number_bytes" in change else FAST
    assert abs(predict_memory(replace(work, **change)).peak_bytes / predict_memory(work).peak_bytes - 1) > 0.07


def test_what_autograd_keeps_of_a_row() -> None:
    """111 kB a row and layer, counted by saved_tensors_hooks on transformers' modules with PEFT's fp32 adapter."""
    assert round(memory._count_saved_reference(replace(REFERENCE, dropout=False)), -3) == 111_000


def test_the_same_numbers_stand_where_they_are_used() -> None:
    assert memory.FUSED_PROJECTIONS == flat_params.FUSED_PROJECTIONS
    assert memory.MAX_PATCHES_PER_CALL == image_features.MAX_PATCHES_PER_CALL
    assert memory.FEATURE_MEMORY_FRACTION == image_features._DEVICE_MEMORY_FRACTION
    assert memory._MAX_LOGIT_ROWS == decoders.LABELS_PER_CHUNK
    rows = range(1, 20_000, 7)
    for parts in (2, 4, 32):
        assert [memory._round_up(count, parts) for count in rows] == [fast._round_up(count, parts) for count in rows]


@pytest.fixture(params=[TARGET_MODULES, ("q_proj", "v_proj")], ids=len)
def shape(request: pytest.FixtureRequest, tiny: Path) -> flat_params.AdapterShape:
    return flat_params.AdapterShape(
        TextConfig.from_hf_config(load_hf_config(BaseCheckpoint.from_folder(tiny))), request.param, 8, 1.0
    )


@pytest.fixture
def work(shape: flat_params.AdapterShape, tiny: Path) -> Workload:
    vision = VisionConfig.from_hf_config(load_hf_config(BaseCheckpoint.from_folder(tiny)))
    return Workload(
        "fast", shape.text, vision, shape.target_modules, shape.rank, has_dropout=False, tokens=100, labels=10
    )


@pytest.fixture
def decoder(shape: flat_params.AdapterShape, tiny: Path) -> Decoder:
    """Float32, so that every number has four bytes."""
    cpu = torch.device("cpu")
    made = load_decoder(BaseCheckpoint.from_folder(tiny), shape, cpu, torch.float32)
    flat_params.FlatLoraParams(shape, cpu).attach(made)
    return made


def test_the_weights_are_the_decoders(decoder: Decoder, work: Workload, shape: flat_params.AdapterShape) -> None:
    linears = [t for linear in decoder.linears for t in (linear.weight, linear.bias, linear._a) if t is not None]
    norms = [norm for layer in decoder.layers for norm in (layer.input_norm, layer.post_attention_norm)]
    count = sum(tensor.numel() for tensor in [*linears, *norms, decoder.norm, decoder.embed_tokens])
    moment = predict_memory(work).phases["backward"]
    assert moment["weights"] == 2 * count
    adapter = flat_params.FlatLoraParams(shape, torch.device("cpu"))
    assert moment["adapter"] == 4 * 4 * adapter.values.numel()  # master, gradient, AdamW's two moments


def test_what_a_layer_keeps_is_what_is_counted(
    decoder: Decoder, work: Workload, tiny: Path, conversations: list[Example]
) -> None:
    batch = pack(
        [Processor.from_folder(tiny, ProcessorSettings(image_size=(28, 28))).encode(conversations[0])],
        num_labels_in_step=1,
    )
    room = fast.BatchShape.from_batch(batch).pad()
    assert (room.tokens, room.labels) == (pad_tokens(len(batch.input_ids)), memory._round_up(len(batch.targets), 2))
    station = fast.StaticInputs(fast.BatchShape.from_batch(batch), decoder)
    station.copy_from(batch, 0)
    first, last = (_bytes(saved, work) for saved in decoder.forward(station.x, station.batch, None).activations)
    rows, last_rows = len(station.x), len(station.batch.last_attention_plan.query_indices)
    assert first == rows * memory._count_saved_fast(work)
    assert last == memory._count_saved_last_layer(work, rows, last_rows) < first
    twice, _ = decoder.forward(station.x, station.batch, None, recompute_layers=1).activations
    assert isinstance(twice, tuple)


def _bytes(saved: object, work: Workload) -> int:
    """Of numbers of two bytes, as on a GPU; attention there keeps a logsumexp a row and head besides."""
    assert isinstance(saved, LayerActivations)
    kept = [value for field in fields(saved) if isinstance(value := getattr(saved, field.name), Tensor)]
    numbers, scales = (sum(t.numel() for t in kept if t.dim() == dims) for dims in (2, 1))
    return 2 * numbers + 4 * scales + 4 * work.text.num_heads * len(saved.attn_ext)


def test_layers_are_run_twice_no_more_than_needed() -> None:
    everything = predict_memory(LARGE).peak_bytes
    assert min_recompute_layers(LARGE, everything) == 0
    few = min_recompute_layers(LARGE, everything - GIB)
    assert 0 < few < 28
    assert (
        predict_memory(replace(LARGE, again=few)).peak_bytes
        <= everything - GIB
        < predict_memory(replace(LARGE, again=few - 1)).peak_bytes
    )
    with pytest.raises(LorgnetteError, match=r"even with every layer run twice.*lower train.max_tokens_per_microbatch"):
        min_recompute_layers(LARGE, 4 * GIB)
    with pytest.raises(LorgnetteError, match=r"^13.2 GiB are needed, and 13.0 GiB are there"):
        min_recompute_layers(REFERENCE, 13 * GIB)


def test_rows_are_lowered_first_and_no_further_than_an_example() -> None:
    def fitting(gib: float, longest: int) -> MemoryFit | None:
        return find_fit(LARGE, longest, int(gib * GIB))

    whole, fewer, twice = fitting(18, 150), fitting(12, 150), fitting(6, 4000)
    assert whole == MemoryFit(8300, 0, predict_memory(LARGE).peak_bytes)
    assert fewer is not None
    assert 150 < fewer.max_tokens < 8300
    assert fewer.recompute_layers == 0
    assert twice is not None
    assert (twice.max_tokens, twice.recompute_layers > 0) == (4000, True)
    assert max(fewer.peak_bytes / 12, twice.peak_bytes / 6) <= GIB
    assert fitting(4, 150) is None


def test_features_that_do_not_fit_lie_on_the_host() -> None:
    many = replace(FAST, feature_rows=50_000_000)
    assert predict_memory(many).peak_bytes > 140 * GIB
    found = find_fit(many, 150, compute_usable_bytes(24.0))
    assert found is not None
    assert found.peak_bytes < compute_usable_bytes(24.0)


def test_an_eval_loss_can_need_the_most() -> None:
    held_out = replace(FAST, held_out_rows=16_000, held_out_labels=1600)
    assert predict_memory(held_out).peak_phase == "held-out"
    assert predict_memory(held_out.limit_tokens(2100)).peak_phase == "backward"


def test_an_open_tower_keeps_what_it_did_instead_of_features() -> None:
    items = predict_memory(replace(REFERENCE, open_patches=6400)).phases["backward"]
    assert items["features"] == 0
    assert items["vision activations"] > GIB
