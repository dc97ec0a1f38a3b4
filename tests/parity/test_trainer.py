"""Parity 4: 20 optimizer steps are those of transformers' Trainer, at the tutorial's own settings: batch 4 ×
accumulation 4, 280×280 pictures, its end token, lr 1e-4 falling linearly to 0, clip 1.0 (dropout 0, to compare)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain import InOrder, Losses
from torch import Tensor
from transformers import TrainingArguments

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.training.sampler import BatchSampler, select_examples
from lorgnette.training.trainer import Trainer
from lorgnette.types import Encoded, Example

STEPS, PER_STEP, SEED = 20, 16, 3
SETTINGS = TrainSettings(epochs=20, batch_size=16, learning_rate=1e-4, max_steps=STEPS, max_tokens_per_microbatch=700)


@pytest.fixture(scope="module")
def captions(example: Callable[..., Example]) -> list[Example]:
    words = ["a red car", "two dogs on a couch", "a man", "snow", "a plate of food with rice and beans", "cat"]
    return [
        example(("user", i % 6, "COCO Yes:"), ("assistant", f"{words[i % 6]} {words[i * 7 % 5]}")) for i in range(32)
    ]


def adapter_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def theirs(bench: Any, encoded: list[Encoded], folder: Path, **changed: Any) -> tuple[dict[str, Tensor], list[float]]:
    order = [i for step in range(STEPS) for i in select_examples(step, len(encoded), PER_STEP, SEED)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=4, learning_rate=1e-4,
        lr_scheduler_type="linear", max_grad_norm=1.0, num_train_epochs=1, logging_steps=1, save_strategy="no",
        report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, label_names=["labels"], **changed,
    )  # fmt: skip
    trainer = InOrder(
        model=bench.model, args=arguments, train_dataset=[encoded[i] for i in order], data_collator=bench.padded_inputs
    )
    trainer.train()
    return adapter_of(bench.model), [line["loss"] for line in trainer.state.log_history if "loss" in line]


def ours(bench: Any, encoded: list[Encoded], settings: TrainSettings) -> tuple[dict[str, Tensor], list[float]]:
    bench.features.prepare(grid for e in encoded for grid in e.grids)
    watcher = Losses()
    Trainer(
        bench.engine, BatchSampler.from_settings(encoded, settings, SEED, group_by_image=False), [], settings
    ).train(watcher)
    return adapter_of(bench.model), watcher.kept


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
TUTORIAL = ProcessorSettings(image_size=(280, 280), eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def reference(
    make_bench: Callable[..., Any], captions: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], list[float]]:
    """The Trainer's adapter and losses, from the same start and the same examples in the same order."""
    bench = make_bench(LORA, TUTORIAL)
    encoded = [bench.encoder.encode(caption) for caption in captions]
    return theirs(bench, encoded, tmp_path_factory.mktemp("trainer"))


def run(
    make_bench: Callable[..., Any], captions: list[Example], settings: TrainSettings
) -> tuple[dict[str, Tensor], list[float]]:
    bench = make_bench(LORA, TUTORIAL)
    return ours(bench, [bench.encoder.encode(caption) for caption in captions], settings)


def test_twenty_steps_equal_the_trainers(
    make_bench: Callable[..., Any], captions: list[Example], reference: tuple[dict[str, Tensor], list[float]]
) -> None:
    adapter, losses = run(make_bench, captions, SETTINGS)
    assert losses == pytest.approx(reference[1], abs=1e-4)
    assert distance(adapter, reference[0]) < 1e-5
    fresh = adapter_of(make_bench(LORA, TUTORIAL).model)
    assert distance(fresh, reference[0]) > 1e-3  # the steps went somewhere


@pytest.mark.parametrize(
    "changed",
    [{"lr": 1.1e-4}, {"schedule": "constant"}, {"max_grad_norm": 0.05}, {"accumulation": 2}, {"warmup_steps": 2}],
    ids=str,
)
def test_another_setting_is_another_run(
    make_bench: Callable[..., Any],
    captions: list[Example],
    reference: tuple[dict[str, Tensor], list[float]],
    changed: dict[str, Any],
) -> None:
    """Negative controls: each setting the comparison holds equal would show if it were not."""
    adapter, _ = run(make_bench, captions, SETTINGS.model_copy(update=changed))
    assert distance(adapter, reference[0]) > 3e-5
