"""The fast engine's losses and LoRA gradients equal those of transformers' padded batch, for every family."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.distributed import TAIL
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import load_decoder
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.kernels.qk_norm_rotary import norm_and_rotate
from lorgnette.kernels.rotary import apply_rotary, expand_mrope_section
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.dropout_keys import derive_step_key
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.training.optimizer import Optimizer
from lorgnette.training.step_counts import LOSS, RankCounts
from lorgnette.types import Encoded, Example, PackedBatch

TOLERANCE = 1e-5
HALF = [torch.bfloat16, torch.float16]
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
LossesAndGrads = tuple[Tensor, dict[str, Tensor]]


FAMILIES = [{}, {"model_type": "qwen2_5_vl"}, {"model_type": "qwen3_vl", "is_tied": False}]
"""Options of make_pair. The first is Qwen2-VL."""
IDS = [str(options.get("model_type", "qwen2_vl")) for options in FAMILIES]


@pytest.fixture(scope="module", params=FAMILIES, ids=IDS)
def pair(make_pair: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    return make_pair(LORA, PROCESSOR, **request.param)


@pytest.fixture(scope="module")
def encoded(pair: Any, conversations: list[Example]) -> list[Encoded]:
    return [pair.processor.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def expected(pair: Any, encoded: list[Encoded]) -> LossesAndGrads:
    """Those of transformers and PEFT, which compute the images' features again."""
    return pair.compute_padded(encoded)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def engine(pair: Any) -> FastEngine:
    return build_engine(pair, LORA)


def build_engine(pair: Any, lora: LoraSettings, dtype: torch.dtype = torch.float32) -> FastEngine:
    """The fast engine with the pair's weights and adapter, on its device."""
    checkpoint = BaseCheckpoint.from_folder(pair.folder)
    shape = AdapterShape(checkpoint.load_text_config(), lora.target_modules, lora.rank, lora.alpha / lora.rank)
    decoder = load_decoder(checkpoint, shape, pair.engine.device, dtype)
    adapter = FlatLoraParams(shape, pair.engine.device)
    adapter.load_state_dict(
        {convert_name(name): p.detach() for name, p in pair.model.named_parameters() if "lora_" in name}
    )
    return FastEngine(decoder, adapter, pair.features, dropout=lora.dropout)


def convert_name(name: str) -> str:
    return name.replace(".default.", ".")


def run_engine(engine: FastEngine, batches: Sequence[PackedBatch]) -> LossesAndGrads:
    """Losses of every label, and the gradient of Σ weights · loss."""
    losses = []
    for batch in batches:
        engine.features.prepare(batch.grids)
        losses.append(engine.compute_label_losses(batch))
        loss = engine.backward(batch)
        torch.testing.assert_close(loss, (losses[-1] * torch.from_numpy(batch.label_weights).to(loss.device)).sum())
    scale = 1.0 if engine.loss_scale is None else engine.loss_scale.item()
    gradients = {name: grad / scale for name, grad in engine.adapter.named_grads.items()}
    engine.adapter.values.grad.zero_()
    return torch.cat(losses), gradients


def measure_distance(actual: LossesAndGrads, expected: LossesAndGrads) -> float:
    """The largest difference of losses, and of gradients relative to the largest entry of their tensor."""
    theirs = {convert_name(name): grad for name, grad in expected[1].items()}
    assert actual[1].keys() == theirs.keys()
    gradients = [
        ((actual[1][name] - grad).abs().max() / grad.abs().max().clamp_min(1e-12)).item()
        for name, grad in theirs.items()
    ]
    return max((actual[0] - expected[0]).abs().max().item(), *gradients)


@pytest.mark.parametrize("prefix_sharing", [False, True])
@pytest.mark.parametrize("max_tokens", [10_000, 90])
def test_losses_and_gradients_equal_transformers(
    engine: FastEngine, encoded: list[Encoded], expected: LossesAndGrads, prefix_sharing: bool, max_tokens: int
) -> None:
    """However a step is split, and whether prefixes are shared or not."""
    batches = split_into_microbatches(encoded, max_tokens, prefix_sharing=prefix_sharing)
    assert measure_distance(run_engine(engine, batches), expected) < TOLERANCE


def test_a_wrong_position_and_a_wrong_mask_show(
    engine: FastEngine, encoded: list[Encoded], expected: LossesAndGrads
) -> None:
    """Negative control."""
    batch = pack(encoded, sum(e.num_labels for e in encoded))
    shifted = batch.position_ids.copy()
    shifted[:, 3:] += 1
    assert measure_distance(run_engine(engine, [replace(batch, position_ids=shifted)]), expected) > 100 * TOLERANCE
    fully_visible = np.full_like(batch.visible_until, len(batch.visible_until))
    assert (
        measure_distance(run_engine(engine, [replace(batch, visible_until=fully_visible)]), expected) > 100 * TOLERANCE
    )


def test_what_a_family_does_differently_shows(
    engine: FastEngine, encoded: list[Encoded], expected: LossesAndGrads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: blocks of M-RoPE instead of interleaved or the reverse; no deepstack, other norms of heads."""
    batch, config = pack(encoded, sum(e.num_labels for e in encoded)), engine.decoder.config
    layer_class = type(engine.decoder.layers[0])

    def swap_axes(patch: pytest.MonkeyPatch) -> None:
        is_interleaved = not config.is_mrope_interleaved
        axes = expand_mrope_section(config.mrope_section, engine.device, is_interleaved=is_interleaved)
        patch.setattr(engine.decoder, "_mrope_axes", axes)

    def leave_out_levels(patch: pytest.MonkeyPatch) -> None:
        patch.setattr("lorgnette.models.qwen2_vl.text_decoder.add_level", lambda *_: None)

    def swap_norms(patch: pytest.MonkeyPatch) -> None:
        for layer in engine.decoder.layers:
            patch.setattr(layer, "head_norms", layer.head_norms.flip(0))

    def norm_behind_rotation(patch: pytest.MonkeyPatch) -> None:
        def rotate_heads(layer: Any, qkv: Tensor, cos_sin: Any, **_: bool) -> Tensor:
            apply_rotary(qkv, *cos_sin, sum(layer.num_heads))
            unrotated = torch.ones_like(cos_sin[0]), torch.zeros_like(cos_sin[0])
            norm_and_rotate(qkv, layer.head_norms, config.rms_norm_eps, *unrotated, layer.num_heads, qkv)
            return qkv

        patch.setattr(layer_class, "rotate_heads", rotate_heads)

    mistakes = [swap_axes, *([leave_out_levels, swap_norms, norm_behind_rotation] if config.has_qk_norm else [])]
    for make_mistake in mistakes:
        with monkeypatch.context() as patch:
            make_mistake(patch)
            assert (engine.compute_label_losses(batch) - expected[0]).abs().max() > 100 * TOLERANCE
    assert (engine.compute_label_losses(batch) - expected[0]).abs().max() < TOLERANCE


def test_features_computed_in_every_step_give_the_same(
    pair: Any, engine: FastEngine, encoded: list[Encoded], expected: LossesAndGrads, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack(encoded, sum(e.num_labels for e in encoded))
    tower = HfVisionTower(pair.model.get_base_model())
    live = Features(tower, pair.processor.image_processor, is_live=True)
    monkeypatch.setattr(engine, "features", live)
    assert measure_distance(run_engine(engine, [batch]), expected) < TOLERANCE


def test_dropout_depends_on_the_step_and_is_unbiased(
    make_pair: Callable[..., Any], conversations: list[Example]
) -> None:
    """Equal steps have equal masks. Where B is zero its gradient is linear in the masks: the mean over many steps is
    the gradient without dropout. Without the factor 1 / (1 − 0.3) it would be 0.7 of it."""
    pair = make_pair(LORA, PROCESSOR)
    engine = build_engine(pair, LORA.model_copy(update={"dropout": 0.3}))
    encoded = [pair.processor.encode(example) for example in conversations]
    num_labels = sum(e.num_labels for e in encoded)
    batches = [pack(encoded, num_labels, step_key=derive_step_key(0, step)) for step in range(10)]
    engine.features.prepare(batches[0].grids)
    first, repeated, different = (engine.backward(batches[step]).item() for step in (5, 5, 6))
    assert first == repeated != different
    for name, factor in engine.adapter.named_params.items():
        if "lora_B" in name:
            factor.zero_()
    gradients = []
    without_dropout = FastEngine(engine.decoder, engine.adapter, engine.features, dropout=0.0)
    for each, steps in ((engine, batches), (without_dropout, batches[:1])):
        engine.adapter.values.grad.zero_()
        for batch in steps:
            each.backward(batch)
        gradients.append(engine.adapter.values.grad / len(steps))
    mean, expected = gradients
    assert abs((mean @ expected / (expected @ expected)).item() - 1) < 0.05
    assert (mean - expected).norm() > 0.05 * expected.norm(), "it drops"


@pytest.fixture(scope="module", params=FAMILIES, ids=IDS)
def pairs(make_pair: Callable[..., Any], request: pytest.FixtureRequest) -> dict[torch.dtype, Any]:
    """By dtype."""
    dtypes = torch.float32, torch.bfloat16, torch.float16
    return {dtype: make_pair(LORA, PROCESSOR, torch.device("cuda"), dtype, **request.param) for dtype in dtypes}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    """In fp32 the kernels equal transformers'; in half precision they are as close to fp32 as transformers'."""

    @pytest.mark.parametrize("prefix_sharing", [False, True])
    def test_in_fp32(self, pairs: Any, conversations: list[Example], prefix_sharing: bool) -> None:
        fp32 = pairs[torch.float32]
        encoded = [fp32.processor.encode(example) for example in conversations]
        batches = split_into_microbatches(encoded, 10_000, prefix_sharing=prefix_sharing)
        engine, expected = build_engine(fp32, LORA), fp32.compute_padded(encoded)
        for _ in range(3):  # eager, captured, replayed
            assert measure_distance(run_engine(engine, batches), expected) < 5 * TOLERANCE

    @pytest.mark.parametrize("prefix_sharing", [False, True])
    @pytest.mark.parametrize("dtype", HALF)
    def test_in_half_precision(
        self, pairs: Any, conversations: list[Example], prefix_sharing: bool, dtype: torch.dtype
    ) -> None:
        fp32, half = pairs[torch.float32], pairs[dtype]
        encoded = [fp32.processor.encode(example) for example in conversations]
        reference, gradients = fp32.compute_padded(encoded)
        with torch.autocast("cuda", dtype):
            theirs, their_gradients = half.compute_padded(encoded)
        engine = build_engine(half, LORA, dtype)
        batches = split_into_microbatches(encoded, 10_000, prefix_sharing=prefix_sharing)
        runs = [run_engine(engine, batches) for _ in range(3)]
        assert rms_error(runs[0][0], reference) <= 1.1 * rms_error(theirs, reference)
        our_error = sum(rms_error(runs[0][1][convert_name(n)], g) for n, g in gradients.items())
        assert our_error <= 1.1 * sum(rms_error(their_gradients[n], g) for n, g in gradients.items())
        for run in runs[1:]:
            assert torch.equal(run[0], runs[0][0])
            assert all(torch.equal(grad, runs[0][1][name]) for name, grad in run[1].items())

    @pytest.mark.parametrize("dtype", HALF)
    def test_the_host_does_not_wait_for_the_device(
        self, pairs: Any, conversations: list[Example], dtype: torch.dtype
    ) -> None:
        half = pairs[dtype]
        encoded = [half.processor.encode(example) for example in conversations]
        engine = build_engine(half, LORA.model_copy(update={"dropout": 0.05}), dtype)
        batches = split_into_microbatches(encoded, 10_000)
        engine.features.prepare(grid for batch in batches for grid in batch.grids)
        optimizer = Optimizer(engine.parameters, TrainSettings(), engine.loss_scale)
        try:
            for step in range(4):
                torch.cuda.set_sync_debug_mode("error" if step == 3 else "default")
                loss = torch.stack([engine.backward(batch) for batch in batches]).sum()
                tail = engine.flat_grad[-TAIL:]
                RankCounts(1, 2, 0.5, is_stopping=False, is_out_of_memory=False).write(tail, loss, 0)
                optimizer.step(tail[LOSS], 1e-4)
                engine.sync_weights()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_captured_graph_reads_the_loss_scale(self, pairs: Any, conversations: list[Example]) -> None:
        """A power of two changes no bit of what is above the smallest numbers of float16; an overflow is not finite."""
        half = pairs[torch.float16]
        encoded = [half.processor.encode(example) for example in conversations]
        engine = build_engine(half, LORA, torch.float16)
        batches, gradients = split_into_microbatches(encoded, 10_000), list[Tensor]()
        scales = 2.0**12, 2.0**12, 2.0**12, 2.0**13, 2.0**40, 2.0**12  # eager, captured, replayed
        for scale in scales:
            engine.loss_scale.fill_(scale)
            gradients.append(torch.cat([g.flatten() for g in run_engine(engine, batches)[1].values()]))
        assert all(torch.equal(gradients[i], gradients[0]) for i in (1, 2, 5))
        torch.testing.assert_close(gradients[3], gradients[0], rtol=1e-3, atol=1e-6)
        assert not gradients[4].isfinite().all()


def rms_error(values: Tensor, reference: Tensor) -> float:
    return (values.float() - reference).square().mean().sqrt().item()
