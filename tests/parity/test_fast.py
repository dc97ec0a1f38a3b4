"""Parity 2 and 3 for the fast engine: losses and every LoRA gradient are those of transformers' padded batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.engine.fast import FastEngine
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.processing.packing import Share, pack, split_into_microbatches
from lorgnette.training.optimizer import Optimizer
from lorgnette.types import Encoded, Example, PackedBatch

TOLERANCE = 1e-5
ENCODE = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
Found = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module")
def bench(make_bench: Callable[..., Any]) -> Any:
    return make_bench(LORA, ENCODE)


@pytest.fixture(scope="module")
def encoded(bench: Any, conversations: list[Example]) -> list[Encoded]:
    return [bench.encoder.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def engine(bench: Any, tiny: Path) -> FastEngine:
    return fast(bench, tiny, LORA)


def fast(bench: Any, folder: Path, lora: LoraSettings, dtype: torch.dtype = torch.float32) -> FastEngine:
    """The fast engine with the bench's weights and adapter, on its device."""
    checkpoint = BaseCheckpoint.from_folder(folder)
    shape = AdapterShape(
        TextConfig.from_hf_config(load_hf_config(checkpoint)), lora.target_modules, lora.rank, lora.alpha / lora.rank
    )
    decoder = load_decoder(checkpoint, shape, bench.engine.device, dtype)
    adapter = FlatLoraParams(shape, bench.engine.device)
    adapter.load_state_dict({saved(name): p.detach() for name, p in bench.model.named_parameters() if "lora_" in name})
    return FastEngine(decoder, adapter, bench.features, dropout=lora.dropout, seed=0)


def saved(name: str) -> str:
    return name.replace(".default.", ".")


def ours(engine: FastEngine, batches: Sequence[PackedBatch]) -> Found:
    """Losses of every label, and the gradient of Σ weights · loss."""
    losses = []
    for batch in batches:
        engine.features.prepare(batch.grids)
        losses.append(engine.compute_label_losses(batch))
        loss = engine.backward(batch, 0)
        torch.testing.assert_close(loss, (losses[-1] * torch.from_numpy(batch.label_weights).to(loss.device)).sum())
    gradients = {name: grad.clone() for name, grad in engine.adapter.named_grads.items()}
    engine.adapter.values.grad.zero_()
    return torch.cat(losses), gradients


def distance(one: Found, other: Found) -> float:
    """The largest difference of a loss, or of a gradient relative to its tensor's largest entry."""
    theirs = {saved(name): grad for name, grad in other[1].items()}
    assert one[1].keys() == theirs.keys()
    gradients = [
        ((one[1][name] - grad).abs().max() / grad.abs().max().clamp_min(1e-12)).item() for name, grad in theirs.items()
    ]
    return max((one[0] - other[0]).abs().max().item(), *gradients)


def test_losses_and_gradients_are_transformers(bench: Any, engine: FastEngine, encoded: list[Encoded]) -> None:
    labels = sum(e.num_labels for e in encoded)
    assert distance(ours(engine, [pack(encoded, labels)]), bench.padded(encoded)) < TOLERANCE


@pytest.mark.parametrize("share", ["none", "tree"])
@pytest.mark.parametrize("most_tokens", [10_000, 90])
def test_packed_shared_and_split_are_all_the_same_step(
    bench: Any, engine: FastEngine, encoded: list[Encoded], share: Share, most_tokens: int
) -> None:
    whole = bench.padded(encoded)
    assert (
        distance(ours(engine, split_into_microbatches(encoded, most_tokens, prefix_sharing=share)), whole) < TOLERANCE
    )


def test_a_wrong_position_and_a_visible_sibling_are_seen(
    bench: Any, engine: FastEngine, encoded: list[Encoded]
) -> None:
    """The negative control: these tests can fail."""
    labels = sum(e.num_labels for e in encoded)
    batch, whole = pack(encoded, labels), bench.padded(encoded)
    moved = batch.position_ids.copy()
    moved[:, 3:] += 1
    assert distance(ours(engine, [replace(batch, positions=moved)]), whole) > 100 * TOLERANCE
    one = np.full_like(batch.visible_until, len(batch.visible_until))
    assert distance(ours(engine, [replace(batch, ends=one)]), whole) > 100 * TOLERANCE


@pytest.mark.parametrize("again", [1, 2])
def test_layers_that_are_run_again_change_nothing(
    bench: Any, tiny: Path, engine: FastEngine, encoded: list[Encoded], again: int
) -> None:
    batch = pack(encoded, sum(e.num_labels for e in encoded))
    losses, gradients = ours(engine, [batch])
    passed = engine.decoder.forward(
        engine._load_batch(batch).x, engine._load_batch(batch).batch, None, recompute_layers=again
    )
    same, dx = engine.decoder.compute_losses_and_grad(passed)
    engine.decoder.backward(passed, dx)
    assert torch.equal(same, losses)
    assert all(torch.equal(engine.adapter.named_grads[name], grad) for name, grad in gradients.items())
    engine.adapter.values.grad.zero_()


def test_dropout_is_what_its_masks_say(bench: Any, tiny: Path, encoded: list[Encoded]) -> None:
    """The same draw gives the same masks; over many draws the gradient's mean is the gradient without dropout."""
    engine = fast(bench, tiny, LORA.model_copy(update={"dropout": 0.3}))
    batch = pack(encoded, sum(e.num_labels for e in encoded))
    engine.features.prepare(batch.grids)
    one, same, other = (engine.backward(batch, draw).item() for draw in (5, 5, 6))
    assert one == same != other
    engine.adapter.values.grad.zero_()
    plain = engine.compute_loss(batch).item()
    losses = [engine.backward(batch, draw).item() for draw in range(40)]
    assert abs(sum(losses) / 40 - plain) < 0.02 * plain


@pytest.fixture(scope="module")
def benches(make_bench: Callable[..., Any]) -> tuple[Any, Any]:
    """In fp32 and in bf16."""
    device = torch.device("cuda")
    return make_bench(LORA, ENCODE, device, torch.float32), make_bench(LORA, ENCODE, device, torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    """In fp32 the kernels are transformers'; in bf16 no further from fp32 than transformers' own bf16."""

    @pytest.mark.parametrize("share", ["none", "tree"])
    def test_in_fp32(self, benches: Any, tiny: Path, conversations: list[Example], share: Share) -> None:
        exact, _ = benches
        encoded = [exact.encoder.encode(example) for example in conversations]
        batches = split_into_microbatches(encoded, 10_000, prefix_sharing=share)
        engine, whole = fast(exact, tiny, LORA), exact.padded(encoded)
        for _ in range(3):  # as it comes, while it is recorded, played back
            assert distance(ours(engine, batches), whole) < 5 * TOLERANCE

    @pytest.mark.parametrize("share", ["none", "tree"])
    def test_in_bf16(self, benches: Any, tiny: Path, conversations: list[Example], share: Share) -> None:
        exact, half = benches
        encoded = [exact.encoder.encode(example) for example in conversations]
        reference, gradients = exact.padded(encoded)
        with torch.autocast("cuda", torch.bfloat16):
            theirs, their_gradients = half.padded(encoded)
        engine = fast(half, tiny, LORA, torch.bfloat16)
        batches = split_into_microbatches(encoded, 10_000, prefix_sharing=share)
        found = [ours(engine, batches) for _ in range(3)]
        assert error(found[0][0], reference) <= 1.1 * error(theirs, reference)
        mine = sum(error(found[0][1][saved(n)], g) for n, g in gradients.items())
        assert mine <= 1.1 * sum(error(their_gradients[n], g) for n, g in gradients.items())
        for again in found[1:]:
            assert torch.equal(again[0], found[0][0])
            assert all(torch.equal(grad, found[0][1][name]) for name, grad in again[1].items())

    def test_nothing_waits_for_the_device(self, benches: Any, tiny: Path, conversations: list[Example]) -> None:
        _, half = benches
        encoded = [half.encoder.encode(example) for example in conversations]
        engine = fast(half, tiny, LORA.model_copy(update={"dropout": 0.05}), torch.bfloat16)
        batches = split_into_microbatches(encoded, 10_000)
        engine.features.prepare(grid for batch in batches for grid in batch.grids)
        optimizer = Optimizer(engine.parameters, TrainSettings())
        try:
            for draw in range(4):
                torch.cuda.set_sync_debug_mode("error" if draw == 3 else "default")
                loss = torch.stack([engine.backward(batch, draw) for batch in batches]).sum()
                optimizer.step(loss, 1e-4)
                engine.sync_weights()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def error(values: Tensor, reference: Tensor) -> float:
    return (values.float() - reference).square().mean().sqrt().item()
