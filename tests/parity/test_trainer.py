"""Parity 4: 20 optimizer steps equal those of transformers' Trainer at the tutorial's settings: batch 4 × accumulation
4, 280×280 images, its end token, learning rate 1e-4 falling linearly to 0, clipping at 1.0 (no dropout, to compare)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain import LossRecorder, OrderedTrainer
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.training.sampler import BatchSampler, select_examples
from lorgnette.training.trainer import Trainer
from lorgnette.types import Encoded, Example

NUM_STEPS, NUM_CONTROL_STEPS, BATCH_SIZE, SEED = 20, 8, 16, 3
SETTINGS = TrainSettings(
    epochs=20, batch_size=BATCH_SIZE, learning_rate=1e-4, max_steps=NUM_STEPS, max_tokens_per_microbatch=700
)


@pytest.fixture(scope="module")
def captions(example: Callable[..., Example]) -> list[Example]:
    words = ["a red car", "two dogs on a couch", "a man", "snow", "a plate of food with rice and beans", "cat"]
    return [
        example(("user", i % 6, "COCO Yes:"), ("assistant", f"{words[i % 6]} {words[i * 7 % 5]}")) for i in range(32)
    ]


def copy_adapter(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class AdapterRecorder(TrainerCallback):
    """Keeps the adapter after each step."""

    def __init__(self) -> None:
        self.adapters: list[dict[str, Tensor]] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.adapters.append(copy_adapter(model))


def train_theirs(pair: Any, encoded: list[Encoded], folder: Path) -> tuple[list[dict[str, Tensor]], list[float]]:
    """The adapter after each step, and the losses."""
    order = [i for step in range(NUM_STEPS) for i in select_examples(step, len(encoded), BATCH_SIZE, SEED)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=4, learning_rate=1e-4,
        lr_scheduler_type="linear", max_grad_norm=1.0, num_train_epochs=1, logging_steps=1, save_strategy="no",
        report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip
    recorder = AdapterRecorder()
    trainer = OrderedTrainer(
        model=pair.model,
        args=arguments,
        train_dataset=[encoded[i] for i in order],
        data_collator=pair.build_padded_inputs,
        callbacks=[recorder],
    )
    trainer.train()
    return recorder.adapters, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def train_ours(
    pair: Any, encoded: list[Encoded], settings: TrainSettings, num_steps: int
) -> tuple[dict[str, Tensor], list[float]]:
    pair.features.prepare(grid for e in encoded for grid in e.grids)
    recorder = LossRecorder(num_steps)
    Trainer(pair.engine, BatchSampler(encoded, settings, SEED, group_by_image=False), [], settings).train(recorder)
    return copy_adapter(pair.model), recorder.losses


def measure_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
TUTORIAL = ProcessorSettings(image_size=(280, 280), eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def reference(
    make_pair: Callable[..., Any], captions: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """The Trainer's adapter after each step and its losses, from the same start and examples in the same order."""
    pair = make_pair(LORA, TUTORIAL)
    encoded = [pair.processor.encode(caption) for caption in captions]
    return train_theirs(pair, encoded, tmp_path_factory.mktemp("trainer"))


def run(
    make_pair: Callable[..., Any], captions: list[Example], settings: TrainSettings, num_steps: int = NUM_STEPS
) -> tuple[dict[str, Tensor], list[float]]:
    pair = make_pair(LORA, TUTORIAL)
    return train_ours(pair, [pair.processor.encode(caption) for caption in captions], settings, num_steps)


def test_twenty_steps_equal_the_trainers(
    make_pair: Callable[..., Any], captions: list[Example], reference: tuple[list[dict[str, Tensor]], list[float]]
) -> None:
    adapter, losses = run(make_pair, captions, SETTINGS)
    assert losses == pytest.approx(reference[1], abs=1e-4)
    assert measure_distance(adapter, reference[0][-1]) < 1e-5
    initial = copy_adapter(make_pair(LORA, TUTORIAL).model)
    assert measure_distance(initial, reference[0][-1]) > 1e-3  # the steps changed it


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1.1e-4},
        {"lr_scheduler_type": "constant"},
        {"max_grad_norm": 0.05},
        {"batch_size": 8},
        {"warmup_steps": 2},
    ],
    ids=str,
)
def test_another_setting_gives_another_adapter(
    make_pair: Callable[..., Any],
    captions: list[Example],
    reference: tuple[list[dict[str, Tensor]], list[float]],
    changes: dict[str, Any],
) -> None:
    """Negative controls: each setting that is equal in the comparison matters, after a few of the steps already."""
    adapter, _ = run(make_pair, captions, SETTINGS.model_copy(update=changes), NUM_CONTROL_STEPS)
    assert measure_distance(adapter, reference[0][NUM_CONTROL_STEPS - 1]) > 3e-5
