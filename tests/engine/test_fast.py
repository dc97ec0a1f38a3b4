"""Padding changes no number, dropout follows its key, and graphs survive running out of memory.

(Equality with transformers' numbers: parity/test_fast.py.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.engine import loading
from lorgnette.engine.cuda_graphs import BatchShape, StaticInputs
from lorgnette.engine.fast import FastEngine, _derive_dropout_key
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl import text_decoder
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PackFn = Callable[[bool], PackedBatch]


@pytest.fixture(scope="module")
def pack_with(tiny: Path, adapter_metadata: AdapterMetadata, conversations: list[Example]) -> PackFn:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    encoded = [processor.encode(example) for example in conversations]
    return lambda prefix_sharing: pack(encoded, 10, prefix_sharing=prefix_sharing)


@pytest.fixture(scope="module")
def make_engine(tiny: Path, saved: Path, adapter_metadata: AdapterMetadata) -> Callable[..., FastEngine]:
    """make_engine(0.3[, seed=, group_by_image=, device=, dtype=]) → with the saved adapter and this dropout."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    image_processor = Processor.from_folder(tiny, adapter_metadata.processor).image_processor

    def make(dropout: float = 0.0, *, device: str = "cpu", dtype: Any = torch.float32, **options: Any) -> FastEngine:
        features = loading.build_features(checkpoint, image_processor, torch.device(device), dtype)
        model = loading.load_fast_model(checkpoint, SavedAdapter.load(saved), features, dtype)
        assert model.adapter is not None
        return FastEngine(model.decoder, model.adapter, features, dropout=dropout, **{"seed": 0, **options})

    return make


def compute(engine: FastEngine, batch: PackedBatch, rng_offset: int = 0) -> tuple[float, Tensor]:
    """Loss and gradient of one micro-batch."""
    engine.features.prepare(batch.grids)
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    return engine.backward(batch, rng_offset).item(), grad.clone()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_padding_changes_neither_loss_nor_gradient(
    make_engine: Callable[..., FastEngine], pack_with: PackFn, prefix_sharing: bool, dropout: float
) -> None:
    engine, batch = make_engine(dropout), pack_with(prefix_sharing)
    loss, expected = compute(engine, batch)
    exact = BatchShape.from_batch(batch)
    padded, unpadded = StaticInputs(exact.pad(), engine.decoder), engine._load_batch(batch)
    padded.copy_from(batch, _derive_dropout_key(0, 0))
    padded.x[: exact.tokens] = unpadded.x
    padded.x[exact.tokens :].normal_()  # as an earlier, longer batch left it
    grad = engine.adapter.values.grad
    assert grad is not None
    grad.zero_()
    engine._forward_backward(padded)
    assert padded.loss.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    assert expected.any()
    # Negative control: padding labels with a weight change the loss and the gradient.
    padded.batch.label_weights[len(batch.targets) - 9 :] = 1.0
    grad.zero_()
    engine._forward_backward(padded)
    assert padded.loss.item() != pytest.approx(loss, rel=1e-2)
    assert (grad - expected).abs().max() > 1e-4


def test_seed_and_rng_offset_select_the_dropout_masks(
    make_engine: Callable[..., FastEngine], pack_with: PackFn
) -> None:
    batch, engine = pack_with(False), make_engine(0.3)
    loss, gradient = compute(engine, batch, 5)
    same_loss, same_gradient = compute(make_engine(0.3), batch, 5)
    assert same_loss == loss
    assert torch.equal(same_gradient, gradient)
    without_dropout = compute(make_engine(), batch)[0]
    for different in (compute(engine, batch, 6)[0], compute(make_engine(0.3, seed=1), batch, 5)[0]):
        assert different not in (loss, without_dropout)
    assert engine.compute_loss(batch).item() == pytest.approx(without_dropout, rel=1e-6)


def test_gradients_add_up(make_engine: Callable[..., FastEngine], pack_with: PackFn) -> None:
    batch, engine = pack_with(False), make_engine(0.3)
    gradient = compute(engine, batch, 5)[1]
    engine.backward(batch, 5)
    torch.testing.assert_close(engine.adapter.values.grad, 2 * gradient, rtol=1e-4, atol=1e-5)


def test_prefixes_are_shared_if_their_dropout_masks_are(make_engine: Callable[..., FastEngine]) -> None:
    assert make_engine().prefix_sharing
    assert not make_engine(0.3).prefix_sharing
    assert make_engine(0.3, group_by_image=True).prefix_sharing
    assert make_engine(0.3).eval_prefix_sharing


def test_dropout_keys_are_all_different() -> None:
    keys = {_derive_dropout_key(seed, rng_offset) for seed in range(20) for rng_offset in range(100)}
    assert len(keys) == 2000
    assert all(0 <= key < 2**31 for key in keys)


@CUDA
def test_capturing_ahead_changes_nothing_but_the_graph(
    make_engine: Callable[..., FastEngine], pack_with: PackFn
) -> None:
    batch = pack_with(False)
    engine, eager, warmed_up = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    warmed_up.warmup([batch])
    before = engine.adapter.values.detach().clone()
    engine.capture_ahead([batch])
    assert engine.adapter.values.grad is not None
    assert not engine.adapter.values.grad.any()
    assert torch.equal(engine.adapter.values, before)
    (inputs,) = engine._static_inputs.values()
    assert inputs.graph is not None
    replayed, expected = compute(engine, batch, 5), compute(eager, batch, 5)
    assert next(iter(eager._static_inputs.values())).graph is None
    assert replayed[0] == expected[0]
    assert torch.equal(replayed[1], expected[1])
    assert expected[1].isfinite().all()
    assert expected[1].any()


@CUDA
@pytest.mark.parametrize("function", ["compute_losses_and_grad", "attention_backward"])
@pytest.mark.parametrize("when", ["captured ahead", "eager", "captured"])
def test_smaller_batches_are_captured_after_running_out_of_memory(
    make_engine: Callable[..., FastEngine],
    pack_with: PackFn,
    when: str,
    function: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was captured before, and whether memory runs out in an eager run or in a capture."""
    batch = pack_with(False)
    engine, eager = (make_engine(0.3, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    expected = compute(eager, batch, 5)
    if when != "captured ahead":
        for _ in range(2 if when == "captured" else 1):
            compute(engine, pack_with(True), 5)
    if when == "captured":
        compute(engine, batch, 5)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(text_decoder if function == "attention_backward" else engine.decoder, function, fail)
        if when == "captured ahead":
            engine.capture_ahead([batch])
        else:
            with pytest.raises(torch.OutOfMemoryError):
                compute(engine, batch, 5)
    assert not engine._static_inputs
    for _ in range(3):  # eager, captured, replayed
        loss, gradient = compute(engine, batch, 5)
        assert loss == expected[0]
        assert torch.equal(gradient, expected[1])
    assert next(iter(engine._static_inputs.values())).graph is not None
