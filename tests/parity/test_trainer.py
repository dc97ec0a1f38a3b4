"""Parity 4: optimizer steps equal those of transformers' Trainer in every family, with the tutorial's end token, a
learning rate that falls linearly to 0 and clipping at 1.0 (no dropout, to compare): 20 steps with accumulation in one
family, 8 in the others, whose steps differ by their gradients alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain import LossRecorder, OrderedTrainer
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.models.registry import FAMILIES
from lorgnette.training.sampler import BatchSampler, select_examples
from lorgnette.training.trainer import Trainer
from lorgnette.types import Encoded, Example

NUM_CONTROL_STEPS, SEED = 5, 3
SETTINGS = TrainSettings(epochs=20, batch_size=4, learning_rate=1e-4, max_steps=20, max_tokens_per_microbatch=99)
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
PROCESSOR = ProcessorSettings(image_size=(64, 96), eos_token="<|endoftext|>")
FIRST = next(iter(FAMILIES))
Run = tuple[list[dict[str, Tensor]], list[float]]
"""The adapter after each step, and the losses."""


@pytest.fixture(scope="module")
def captions(example: Callable[..., Example]) -> list[Example]:
    words = ["a red car", "two dogs on a couch", "a man", "snow", "a plate of food with rice and beans", "cat"]
    return [
        example(("user", i % 6, "COCO Yes:"), ("assistant", f"{words[i % 6]} {words[i * 7 % 5]}")) for i in range(12)
    ]


def copy_adapter(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class AdapterRecorder(TrainerCallback):
    """Keeps the adapter after each step."""

    def __init__(self) -> None:
        self.adapters: list[dict[str, Tensor]] = []

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.adapters.append(copy_adapter(model))


def train_theirs(pair: Any, encoded: list[Encoded], settings: TrainSettings, folder: Path) -> Run:
    assert settings.max_steps
    steps = range(settings.max_steps)
    order = [i for step in steps for i in select_examples(step, len(encoded), settings.batch_size, SEED)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2,
        gradient_accumulation_steps=settings.batch_size // 2, learning_rate=1e-4,
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


@pytest.fixture(scope="module", params=FAMILIES)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def make(make_pair: Callable[..., Any], model_type: str, captions: list[Example]) -> Callable[[], tuple[Any, Any]]:
    """make() → a fresh pair, always from the same start, and the encoded captions."""

    def build() -> tuple[Any, Any]:
        pair = make_pair(LORA, PROCESSOR, model_type=model_type)
        return pair, [pair.processor.encode(caption) for caption in captions]

    return build


@pytest.fixture(scope="module")
def settings(model_type: str) -> TrainSettings:
    return SETTINGS if model_type == FIRST else SETTINGS.model_copy(update={"batch_size": 2, "max_steps": 8})


@pytest.fixture(scope="module")
def reference(
    make: Callable[[], tuple[Any, Any]], settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The Trainer's run, from the same start and with the examples in the same order."""
    return train_theirs(*make(), settings, tmp_path_factory.mktemp("trainer"))


def test_steps_equal_the_trainers(make: Callable[[], tuple[Any, Any]], settings: TrainSettings, reference: Run) -> None:
    pair, encoded = make()
    initial = copy_adapter(pair.model)
    assert settings.max_steps
    adapter, losses = train_ours(pair, encoded, settings, settings.max_steps)
    assert losses == pytest.approx(reference[1], abs=1e-4)
    assert measure_distance(adapter, reference[0][-1]) < 1e-5
    assert measure_distance(initial, reference[0][-1]) > 3e-4  # the steps changed it


@pytest.fixture(scope="module")
def made(make: Callable[[], tuple[Any, Any]]) -> tuple[Any, list[Encoded], dict[str, Tensor]]:
    """A pair for all controls, the encoded captions, and the adapter's start."""
    pair, encoded = make()
    return pair, encoded, copy_adapter(pair.model)


@pytest.mark.parametrize("model_type", [FIRST], indirect=True)
@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1.1e-4},
        {"lr_scheduler_type": "constant"},
        {"max_grad_norm": 0.05},
        {"batch_size": 2},
        {"warmup_steps": 2},
        {},
    ],
    ids=str,
)
def test_another_setting_gives_another_adapter(
    made: tuple[Any, list[Encoded], dict[str, Tensor]],
    settings: TrainSettings,
    reference: Run,
    changes: dict[str, Any],
) -> None:
    """Negative controls: each setting that is equal in the comparison matters, after a few of the steps already. That
    without a change the adapter is the same shows that each control begins at the start."""
    pair, encoded, start = made
    for name, parameter in pair.model.named_parameters():
        if name in start:
            parameter.data.copy_(start[name])
    adapter, _ = train_ours(pair, encoded, settings.model_copy(update=changes), NUM_CONTROL_STEPS)
    distance = measure_distance(adapter, reference[0][NUM_CONTROL_STEPS - 1])
    assert distance > 3e-5 if changes else distance < 1e-5
