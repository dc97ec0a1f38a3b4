"""A model of transformers whose layers FSDP2 cuts over the ranks computes what the whole one does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette import config
from lorgnette.distributed import World
from lorgnette.engine.base import run_on_main_rank
from lorgnette.engine.fsdp_layers import load_sharded_model
from lorgnette.engine.peft_engine import ReferenceEngine, add_adapter, load_base_model
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.loading import LoadedModel
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PackedBatch
from tests.ranks import run_ranks


def build_engine(
    folder: Path,
    processor: Processor,
    batches: Sequence[PackedBatch],
    job: tuple[str, torch.dtype],
    world: World | None,
) -> ReferenceEngine:
    """The tiny model with an adapter that changes its outputs; in a world its layers are cut. job: device, dtype."""
    checkpoint, device = BaseCheckpoint.from_folder(folder), torch.device(job[0])
    settings = config.load_settings({"lora.rank": 4, "lora.dropout": 0, "seed": 3})
    shards = None
    if world is None:
        base = load_base_model(checkpoint, device, job[1])
        model = add_adapter(base, checkpoint.family, settings.lora, settings.seed)
    else:
        model, shards = load_sharded_model(checkpoint, settings, None, device, job[1], world)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.05)
    features = Features(HfVisionTower(model.get_base_model()), processor.image_processor, is_live=False)
    for batch in batches:
        assert not features.prepare(batch.grids)
    return ReferenceEngine(model, features, shards)


def compute(engine: ReferenceEngine, batches: Sequence[PackedBatch]) -> Tensor:
    """The gradient of these micro-batches."""
    engine.flat_grad.zero_()
    for batch in batches:
        engine.backward(batch)
    return engine.flat_grad.clone()


def train_rank(
    world: World, folder: Path, processor: Processor, batches: Sequence[PackedBatch], job: tuple[str, torch.dtype]
) -> dict[str, Any]:
    """Rank 0 has two micro-batches, rank 1 one and an empty pass."""
    whole, cut = (build_engine(folder, processor, batches, job, part) for part in (None, world))
    shares = [batches[:2], batches[2:]][world.rank]
    expected, gradient = compute(whole, shares), compute(cut, shares)
    if world.rank == 1:
        assert cut.shards is not None
        cut.shards.run_empty_pass(backward=True)
        gradient = cut.flat_grad.clone()

    # Evaluate, then let rank 0 alone answer.
    losses = [engine.compute_loss(batches[0]) for engine in (whole, cut)]
    example = batches[0].examples[0]
    answers = run_on_main_rank(world, cut.shards, lambda: answer(cut, processor, example))
    frozen = [p for n, p in cut.model.named_parameters() if "language_model.layers" in n and not p.requires_grad]
    local = sum(p.to_local().numel() for p in frozen)
    # Negative control: rank 1 changes the part that it holds, and rank 0 computes with it.
    if world.rank == 1:
        frozen[0].to_local().mul_(2)
    other = cut.compute_loss(batches[0])
    return {
        "is_equal": torch.equal(expected, gradient), "norm": gradient.norm().item(), "other": other.item(),
        "losses": [loss.item() for loss in losses], "share": local / sum(p.numel() for p in frozen),
        "answers": answers, "expected": answer(whole, processor, example),
    }  # fmt: skip


def answer(engine: ReferenceEngine, processor: Processor, example: Example) -> list[str]:
    """The answer of the adapter and of the base model alone."""
    model, sampling = LoadedModel(engine.model, processor), SamplingParams(max_new_tokens=3)
    adapters = ("default", None)
    return [next(iter(model.generate_answers([example], sampling, adapter=name))).text for name in adapters]


NEEDS_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize(
    "job",
    [
        ("cpu", torch.bfloat16),
        pytest.param(("cuda", torch.float32), marks=NEEDS_GPUS),
        pytest.param(("cuda", torch.bfloat16), marks=NEEDS_GPUS),
    ],
    ids=str,
)
def test_layers_that_are_cut_compute_what_whole_ones_do(
    tiny: Path, adapter_metadata: AdapterMetadata, conversations: list[Example], job: tuple[str, torch.dtype]
) -> None:
    processor = Processor.from_folder(tiny, adapter_metadata.processor)
    encoded = [processor.encode(example) for example in conversations]
    batches = [pack(encoded[i : i + 2], 10) for i in (0, 2, 3)]
    ranks = run_ranks(train_rank, 2, tiny, processor, batches, job, device_type=job[0])
    for result in ranks:
        assert result["is_equal"]
        assert result["norm"] > 0
        assert result["losses"][0] == result["losses"][1] != result["other"]
        assert 0.45 < result["share"] < 0.55
    assert [result["answers"] for result in ranks] == [ranks[0]["expected"], None]
