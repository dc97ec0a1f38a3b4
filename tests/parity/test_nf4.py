"""NF4 in the fast engine: its step is that of the dequantized weights, and of transformers, PEFT and bitsandbytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_nf4_checkpoint
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import build_features, load_decoder
from lorgnette.engine.peft_engine import ReferenceEngine, add_adapter, load_base_model
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.generator import Generator
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.lora_linear import QuantizedWeight
from lorgnette.models.networks import Decoder
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = [(CPU, torch.float32), pytest.param(torch.device("cuda"), torch.bfloat16, marks=CUDA)]
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
TOLERANCE = 1e-5
LossesAndGrads = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module", params=["setting", "stored"])
def checkpoint(
    tiny_family: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> BaseCheckpoint:
    """Quantized while it is loaded, with double quantization, or stored without."""
    if request.param == "setting":
        return BaseCheckpoint.from_folder(tiny_family("qwen3_vl")).quantize("nf4")
    folder, source = tmp_path_factory.mktemp("nf4") / "model", tiny_family("qwen2_vl")
    return BaseCheckpoint.from_folder(write_nf4_checkpoint(folder, source, has_double_quantization=False))


@pytest.fixture(scope="module")
def batch(checkpoint: BaseCheckpoint, conversations: list[Example]) -> PackedBatch:
    processor = Processor.from_folder(checkpoint.folder, PROCESSOR)
    encoded = [processor.encode(example) for example in conversations[:2]]
    return pack(encoded, sum(e.num_labels for e in encoded))


def build_engine(checkpoint: BaseCheckpoint, device: torch.device, dtype: torch.dtype, dropout: float) -> FastEngine:
    """A fast engine with a random adapter."""
    shape = AdapterShape.from_settings(checkpoint.load_text_config(), LORA)
    decoder, adapter = load_decoder(checkpoint, shape, device, dtype), FlatLoraParams(shape, device)
    generator = torch.Generator().manual_seed(1)
    adapter.copy_from(torch.randn(shape.num_params, generator=generator) * 0.05)
    image_processor = Processor.from_folder(checkpoint.folder, PROCESSOR).image_processor
    features = build_features(checkpoint, image_processor, device, dtype)
    return FastEngine(decoder, adapter, features, dropout=dropout, recompute_layers=1)


def dequantize_decoder(decoder: Decoder) -> None:
    """Put plain matrices [W | B] in the place of NF4, with the same numbers."""
    for linear in decoder.linears:
        weight = linear.weight
        assert isinstance(weight, QuantizedWeight)
        plain = torch.zeros(weight.shape, dtype=weight.b.dtype, device=weight.b.device)
        start = 0
        for part in weight.parts:
            assert isinstance(part, Nf4Matrix)
            dequantize_nf4(part, plain[start : start + part.shape[0], : part.shape[1]])
            start += part.shape[0]
        linear.weight, linear._b = plain, plain[:, linear.in_features :]


def run_engine(engine: FastEngine, batch: PackedBatch) -> LossesAndGrads:
    engine.sync_weights()
    engine.features.prepare(batch.grids)
    losses = engine.compute_label_losses(batch)
    for _ in range(3 if engine.device.type == "cuda" else 1):  # eager, captured and replayed
        engine.adapter.values.grad.zero_()
        engine.backward(batch)
    return losses, {name: grad.clone() for name, grad in engine.adapter.named_grads.items()}


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
def test_a_step_equals_that_of_the_dequantized_weights(
    checkpoint: BaseCheckpoint, batch: PackedBatch, device: torch.device, dtype: torch.dtype
) -> None:
    """Bit for bit, with dropout and a layer that is run twice."""
    engine, plain = (build_engine(checkpoint, device, dtype, 0.3) for _ in range(2))
    dequantize_decoder(plain.decoder)
    plain = FastEngine(plain.decoder, plain.adapter, plain.features, dropout=0.3, recompute_layers=1)
    (losses, grads), (expected_losses, expected_grads) = run_engine(engine, batch), run_engine(plain, batch)
    assert torch.equal(losses, expected_losses)
    assert all(torch.equal(grad, expected_grads[name]) for name, grad in grads.items())
    for linear in plain.decoder.linears:  # negative control
        linear.load_weight()[:, : linear.in_features] *= 1.01
    assert not torch.equal(run_engine(plain, batch)[0], losses)


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
def test_answers_equal_those_of_the_dequantized_weights(
    checkpoint: BaseCheckpoint, conversations: list[Example], device: torch.device, dtype: torch.dtype
) -> None:
    """The logits of the prompts and of three more tokens: on CUDA eager, captured and replayed."""
    processor = Processor.from_folder(checkpoint.folder, PROCESSOR)
    prompts = [processor.encode(example, add_generation_prompt=True) for example in conversations[:2]]
    engine, plain = (build_engine(checkpoint, device, dtype, 0.0) for _ in range(2))
    dequantize_decoder(plain.decoder)
    FastEngine(plain.decoder, plain.adapter, plain.features, dropout=0.0)
    engine.features.prepare(grid for prompt in prompts for grid in prompt.grids)
    logits = []
    for decoder in (engine.decoder, plain.decoder):
        generator = Generator(decoder, engine.features)
        cache = generator.prefill(prompts, 4, use_adapter=True)
        step = cache.logits[: len(prompts)]
        logits.append([step.clone()])
        for _ in range(3):
            step = generator.decode_step(cache, step.argmax(-1), use_adapter=True)
            logits[-1].append(step.clone())
    assert all(map(torch.equal, *logits))
    assert not torch.equal(logits[0][0], logits[0][1])


def test_losses_and_gradients_equal_those_of_bitsandbytes(checkpoint: BaseCheckpoint, batch: PackedBatch) -> None:
    """Of transformers' model with the same adapter; its features are its own tower's."""
    engine = build_engine(checkpoint, CPU, torch.float32, 0.0)
    assert checkpoint.quantization is not None
    losses, grads = run_engine(engine, batch)
    expected, expected_grads = run_reference(build_reference(checkpoint, engine.adapter), batch)
    assert (losses - expected).abs().max() < TOLERANCE
    for name, grad in grads.items():
        assert (grad - expected_grads[name]).abs().max() < TOLERANCE * expected_grads[name].abs().max(), name
    if not checkpoint.quantization.is_stored:
        plain = build_reference(BaseCheckpoint.from_folder(checkpoint.folder), engine.adapter)
        assert (run_reference(plain, batch)[0] - losses).abs().max() > 100 * TOLERANCE  # negative control


def build_reference(checkpoint: BaseCheckpoint, adapter: FlatLoraParams) -> ReferenceEngine:
    base = load_base_model(checkpoint, CPU, torch.float32)
    image_processor = Processor.from_folder(checkpoint.folder, PROCESSOR).image_processor
    features = Features(HfVisionTower(base), image_processor, is_live=False)
    model: Any = add_adapter(base, checkpoint.family, LORA, seed=0)
    parameters = dict(model.named_parameters())
    for name, values in adapter.named_params.items():
        parameters[name.replace(".weight", ".default.weight")].data.copy_(values)
    return ReferenceEngine(model.train(), features)


def run_reference(engine: ReferenceEngine, batch: PackedBatch) -> LossesAndGrads:
    engine.features.prepare(batch.grids)
    losses = engine.compute_label_losses(batch)
    (losses * torch.from_numpy(batch.label_weights).to(losses.device)).sum().backward()
    grads = {n.replace(".default.", "."): p.grad for n, p in engine.model.named_parameters() if p.grad is not None}
    return losses.detach(), grads
