"""The prediction is what was measured, and is made of what the engines really keep."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import LANGUAGE_TARGETS, Encode
from lorgnette.engine import fast
from lorgnette.engine.build_decoder import decoder_of
from lorgnette.errors import LorgnetteError
from lorgnette.features import image_features
from lorgnette.lora import flat_params
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl import text_decoder as decoders
from lorgnette.models.qwen2_vl.config import TextShape, VisionShape, config_of
from lorgnette.models.qwen2_vl.text_decoder import Decoder, Saved
from lorgnette.planning import memory
from lorgnette.planning.memory import GIB, Fit, Work, fit, layers_again, padded, predicted, usable
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Encoder
from lorgnette.types import Example

TEXT = TextShape(28, 1536, 12, 2, 128, 8960, 151936, 1e-6, 1e6, (16, 24, 24), tied=True)
VISION = VisionShape(32, 1280, 16, 5120, 1536, 14, 2, 2, 3)
FAST = Work("fast", TEXT, VISION, LANGUAGE_TARGETS, 64, dropout=True, rows=2100, labels=224, rooms=2)
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
def test_within_seven_hundredths_of_what_was_measured(work: Work, gib: float) -> None:
    """torch.cuda.max_memory_allocated on one NVIDIA H200, torch 2.11."""
    assert abs(predicted(work).peak / GIB / gib - 1) < 0.07


@pytest.mark.parametrize(
    "change", [{"rank": 512}, {"rows": 3000}, {"again": 14}, {"number_bytes": 4}, {"targets": ("q_proj",)}]
)
def test_another_run_is_another_prediction(change: dict[str, Any]) -> None:
    """The negative control: seven hundredths tell runs apart."""
    work = REFERENCE if "number_bytes" in change else FAST
    assert abs(predicted(replace(work, **change)).peak / predicted(work).peak - 1) > 0.07


def test_what_autograd_keeps_of_a_row() -> None:
    """111 kB a row and layer, counted by saved_tensors_hooks on transformers' modules with PEFT's fp32 adapter."""
    assert round(memory._kept_reference(replace(REFERENCE, dropout=False)), -3) == 111_000


def test_the_same_numbers_stand_where_they_are_used() -> None:
    assert memory.TOGETHER == flat_params.GROUPS
    assert memory.PATCHES_AT_ONCE == image_features.PATCHES_AT_ONCE
    assert memory.FEATURES_SHARE == image_features._DEVICE_SHARE
    assert memory._LABELS_AT_ONCE == decoders.LABELS_AT_ONCE
    rows = range(1, 20_000, 7)
    for parts in (2, 4, 32):
        assert [memory._rounded(count, parts) for count in rows] == [fast._rounded(count, parts) for count in rows]


@pytest.fixture(params=[LANGUAGE_TARGETS, ("q_proj", "v_proj")], ids=len)
def shape(request: pytest.FixtureRequest, tiny: Path) -> flat_params.AdapterShape:
    return flat_params.AdapterShape(TextShape.of(config_of(Checkpoint.at(tiny))), request.param, 8, 1.0)


@pytest.fixture
def work(shape: flat_params.AdapterShape, tiny: Path) -> Work:
    vision = VisionShape.of(config_of(Checkpoint.at(tiny)))
    return Work("fast", shape.text, vision, shape.targets, shape.rank, dropout=False, rows=100, labels=10)


@pytest.fixture
def decoder(shape: flat_params.AdapterShape, tiny: Path) -> Decoder:
    """Float32, so that every number has four bytes."""
    cpu = torch.device("cpu")
    made = decoder_of(Checkpoint.at(tiny), shape, cpu, torch.float32)
    flat_params.FlatAdapter(shape, cpu).attach(made)
    return made


def test_the_weights_are_the_decoders(decoder: Decoder, work: Work, shape: flat_params.AdapterShape) -> None:
    linears = [t for linear in decoder.linears for t in (linear.weight, linear.bias, linear._a) if t is not None]
    norms = [norm for layer in decoder.layers for norm in (layer.norm1, layer.norm2)]
    count = sum(tensor.numel() for tensor in [*linears, *norms, decoder.norm, decoder.embedding])
    moment = predicted(work).moments["backward"]
    assert moment["weights"] == 2 * count
    adapter = flat_params.FlatAdapter(shape, torch.device("cpu"))
    assert moment["adapter"] == 4 * 4 * adapter.values.numel()  # master, gradient, AdamW's two moments


def test_what_a_layer_keeps_is_what_is_counted(
    decoder: Decoder, work: Work, tiny: Path, conversations: list[Example]
) -> None:
    batch = pack([Encoder.of_folder(tiny, Encode(size=(28, 28))).encode(conversations[0])], labels_in_step=1)
    room = fast.Room.of(batch).padded()
    assert (room.rows, room.labels) == (padded(len(batch.tokens)), memory._rounded(len(batch.targets), 2))
    station = fast.Station(fast.Room.of(batch), decoder)
    station.fill(batch, 0)
    first, last = (_bytes(saved, work) for saved in decoder.forward(station.x, station.rows, None).layers)
    rows, last_rows = len(station.x), len(station.rows.last_sight.rows)
    assert first == rows * memory._kept_fast(work)
    assert last == memory._kept_last(work, rows, last_rows) < first
    twice, _ = decoder.forward(station.x, station.rows, None, again=1).layers
    assert isinstance(twice, tuple)


def _bytes(saved: object, work: Work) -> int:
    """Of numbers of two bytes, as on a GPU; attention there keeps a logsumexp a row and head besides."""
    assert isinstance(saved, Saved)
    kept = [value for field in fields(saved) if isinstance(value := getattr(saved, field.name), Tensor)]
    numbers, scales = (sum(t.numel() for t in kept if t.dim() == dims) for dims in (2, 1))
    return 2 * numbers + 4 * scales + 4 * work.text.heads * len(saved.au)


def test_layers_are_run_twice_no_more_than_needed() -> None:
    everything = predicted(LARGE).peak
    assert layers_again(LARGE, everything) == 0
    few = layers_again(LARGE, everything - GIB)
    assert 0 < few < 28
    assert predicted(replace(LARGE, again=few)).peak <= everything - GIB < predicted(replace(LARGE, again=few - 1)).peak
    with pytest.raises(LorgnetteError, match=r"even with every layer run twice.*lower train.pass_tokens"):
        layers_again(LARGE, 4 * GIB)
    with pytest.raises(LorgnetteError, match=r"^13.2 GiB are needed, and 13.0 GiB are there"):
        layers_again(REFERENCE, 13 * GIB)


def test_rows_are_lowered_first_and_no_further_than_an_example() -> None:
    def fitting(gib: float, longest: int) -> Fit | None:
        return fit(LARGE, longest, int(gib * GIB))

    whole, fewer, twice = fitting(18, 150), fitting(12, 150), fitting(6, 4000)
    assert whole == Fit(8300, 0, predicted(LARGE).peak)
    assert fewer is not None
    assert 150 < fewer.rows < 8300
    assert fewer.again == 0
    assert twice is not None
    assert (twice.rows, twice.again > 0) == (4000, True)
    assert max(fewer.peak / 12, twice.peak / 6) <= GIB
    assert fitting(4, 150) is None


def test_features_that_do_not_fit_lie_on_the_host() -> None:
    many = replace(FAST, feature_rows=50_000_000)
    assert predicted(many).peak > 140 * GIB
    found = fit(many, 150, usable(24.0))
    assert found is not None
    assert found.peak < usable(24.0)


def test_an_eval_loss_can_need_the_most() -> None:
    held_out = replace(FAST, held_out_rows=16_000, held_out_labels=1600)
    assert predicted(held_out).fullest == "held-out"
    assert predicted(held_out.in_passes_of(2100)).fullest == "backward"


def test_an_open_tower_keeps_what_it_did_instead_of_features() -> None:
    items = predicted(replace(REFERENCE, open_patches=6400)).moments["backward"]
    assert items["features"] == 0
    assert items["vision activations"] > GIB
