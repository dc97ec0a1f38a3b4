"""Answers that join and leave at any step equal those generated alone."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorgnette.config import ProcessorSettings, TargetModule
from lorgnette.engine.loading import build_features, load_decoder_with_adapters, load_fast_model
from lorgnette.inference.continuous_batch import ContinuousBatch, DecodeRow
from lorgnette.inference.decode import generate_tokens
from lorgnette.inference.generator import Generator
from lorgnette.inference.sampling import Sampler, SamplingParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example

CPU = torch.device("cpu")
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
ADAPTERS: list[tuple[tuple[TargetModule, ...], int, int]] = [
    (("q_proj", "v_proj", "up_proj"), 4, 8), (("q_proj", "o_proj", "down_proj"), 3, 3),
]  # fmt: skip


def make_adapters(checkpoint: BaseCheckpoint) -> list[SavedAdapter]:
    """Adapters that change answers, of other modules and other ranks."""
    generator, adapters = torch.Generator().manual_seed(3), []
    for number, (targets, rank, alpha) in enumerate(ADAPTERS):
        shape = AdapterShape(checkpoint.load_text_config(), targets, rank, alpha / rank)
        state = {name: torch.randn(size, generator=generator) * 0.2 for name, size in shape.factor_shapes().items()}
        config = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets)}
        adapters.append(SavedAdapter(Path(f"adapter{number}"), config, state))
    return adapters


class Family:
    """A tiny model with two adapters side by side, and each of them alone."""

    def __init__(self, folder: Path, conversations: Sequence[Example], device: torch.device, dtype: torch.dtype) -> None:
        checkpoint, processor = BaseCheckpoint.from_folder(folder), Processor.from_folder(folder, PROCESSOR)
        self.prompts = [processor.encode(example, add_generation_prompt=True) for example in conversations]
        features = build_features(checkpoint, processor.image_processor, device, dtype)
        features.prepare(grid for prompt in self.prompts for grid in prompt.grids)
        adapters = make_adapters(checkpoint)
        decoder, self.ranks = load_decoder_with_adapters(checkpoint, adapters, device, dtype)
        self.generator = Generator(decoder, features)
        self.alone = [Generator(load_fast_model(checkpoint, a, features, dtype).decoder, features) for a in adapters]

    def answer_alone(self, row: DecodeRow) -> list[int]:
        generator = self.alone[row.adapter or 0]
        sampler, limit = Sampler(row.sampling, [0], generator.device), row.sampling.max_new_tokens
        return generate_tokens(generator, [row.prompt], sampler, limit, [], use_adapter=row.adapter is not None)[0].tolist()


def make_rows(prompts: Sequence[Encoded], count: int, adapters: Sequence[int | None], seed: int) -> list[DecodeRow]:
    """Greedy and sampled answers of several lengths and models."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        sampling = SamplingParams(max_new_tokens=draw.randint(1, 24), seed=number)
        if number % 3 == 0:
            sampling = replace(sampling, temperature=draw.uniform(0.5, 2), top_p=draw.choice([0.8, 1.0]))
        rows.append(DecodeRow(draw.choice(prompts), draw.choice(adapters), sampling))
    return rows


def answer_together(batch: ContinuousBatch, rows: Sequence[DecodeRow], seed: int) -> dict[DecodeRow, list[int]]:
    """The tokens of every row. Rows join at random steps, and leave with their last token."""
    draw, waiting, tokens = random.Random(seed), list(rows), {row: list[int]() for row in rows}
    arrived, is_done = list[DecodeRow](), False
    while not is_done:
        for _ in range(draw.choice([0, 0, 1, 5])):
            arrived += waiting[:1]
            del waiting[:1]
        joining = batch.select(arrived)
        batch.join(joining)
        arrived = [row for row in arrived if row not in joining]
        for row, token in batch.step():
            tokens[row].append(token)
            if len(tokens[row]) == row.sampling.max_new_tokens:
                batch.leave(row)
        is_done = all(len(ids) == row.sampling.max_new_tokens for row, ids in tokens.items())
    assert batch.step() == []
    return tokens


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_rows_that_join_and_leave_get_the_tokens_of_rows_alone(
    tiny_family: Callable[[str], Path], conversations: list[Example], model_type: str
) -> None:
    family = Family(tiny_family(model_type), conversations, CPU, torch.float32)
    rows = make_rows(family.prompts, 40, [None, 0, 1], seed=1)
    batch = ContinuousBatch(family.generator, family.ranks)
    answers = answer_together(batch, rows, seed=2)
    for row, tokens in answers.items():
        assert tokens == family.answer_alone(row)
