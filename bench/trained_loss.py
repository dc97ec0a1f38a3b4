"""Compare the losses of trained adapters with fp32's, by one judge: transformers in fp32, without dropout.

    python bench/trained_loss.py JOB NAME=ADAPTER … --out results.json [--dropout 0.05]

The loss is the mean over the answers' tokens of the job's first 64 training examples. fp32's adapter is trained here by
the reference engine in float32, from the first adapter and in the order that all trainers have (start.py), with image
features of bf16. Dropout's masks differ from trainer to trainer. So lorgnette's fast engine also trains with other
masks and nothing else changed: `spread` is the range of its losses (only on CUDA).
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import DEVICE, HAS_GPU, name_device
from precision import load_tower
from results_file import ResultsFile
from start import BATCH_SIZE, RANK, SEED, order_examples

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine import peft_engine
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import load_decoder
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.dropout_keys import derive_step_key
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.training.lr_schedule import compute_learning_rate
from lorgnette.training.optimizer import Optimizer
from lorgnette.types import Encoded, Example

NUM_JUDGED, NUM_HELD_OUT, NUM_MASKS = 64, 4, 3
SETTINGS = TrainSettings(epochs=2, learning_rate=1e-4, lr_scheduler_type="linear")
"""As recipes/coco-caption.yaml."""


class Judge:
    """The model in fp32 with an adapter of the job's shape, which each adapter in turn is copied into."""

    def __init__(
        self, checkpoint: BaseCheckpoint, features: Features, lora: LoraSettings, judged: Sequence[Encoded]
    ) -> None:
        base = peft_engine.load_base_model(checkpoint, DEVICE, torch.float32)
        self.model = peft_engine.add_adapter(base, checkpoint.family, lora, SEED)
        self.engine = peft_engine.ReferenceEngine(self.model, features)
        num_labels = sum(example.num_labels for example in judged)
        groups = (judged[i : i + BATCH_SIZE] for i in range(0, len(judged), BATCH_SIZE))
        self.batches = [pack(group, num_labels) for group in groups]

    def compute_loss(self, state: Mapping[str, torch.Tensor] | None = None) -> float:
        """Of these factors, or of those in the model."""
        if state is not None:
            peft_engine.set_adapter_state(self.model, state)
        return sum(self.engine.compute_loss(batch).item() for batch in self.batches)


def train(engine: Any, encoded: Sequence[Encoded], seed: int) -> list[float]:
    """Take the job's steps; return their losses. seed: of the dropout masks."""
    torch.manual_seed(seed)  # the reference engine's masks
    optimizer = Optimizer(engine.parameters, SETTINGS, engine.loss_scale)
    order = [index for epoch in order_examples(len(encoded)) for index in epoch]
    groups = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    losses = []
    for step, group in enumerate(groups):
        examples = [encoded[index] for index in group]
        batch = pack(examples, sum(example.num_labels for example in examples), step_key=derive_step_key(seed, step))
        result = optimizer.step(engine.backward(batch), compute_learning_rate(step, len(groups), SETTINGS))
        engine.sync_weights()
        losses.append(result[0].clone())
    return [loss.item() for loss in losses]


def train_fast(checkpoint: BaseCheckpoint, features: Features, lora: LoraSettings, encoded: Sequence[Encoded]) -> Any:
    """lorgnette's adapters in bf16, one for each seed of the masks."""
    shape = AdapterShape.from_settings(checkpoint.load_text_config(), lora)
    adapter, decoder = FlatLoraParams(shape, DEVICE), load_decoder(checkpoint, shape, DEVICE, torch.bfloat16)
    engine = FastEngine(decoder, adapter, features, dropout=lora.dropout)
    for seed in range(NUM_MASKS):
        adapter.copy_from(FlatLoraParams.init_values(shape, SEED))
        engine.sync_weights()
        train(engine, encoded, seed)
        yield adapter.copy_to_cpu()


def load_adapter(folder: Path, lora: LoraSettings) -> Mapping[str, torch.Tensor]:
    """Raises LorgnetteError if its scale is not the job's."""
    saved = SavedAdapter.load(folder)
    rank, alpha = saved.config["r"], saved.config["lora_alpha"]
    if (rank, alpha) != (lora.rank, lora.alpha) or saved.config.get("use_rslora"):
        raise LorgnetteError(f"rank {rank} and alpha {alpha} are not the job's", where=str(folder))
    return saved.state


def judge_adapters(
    judge: Judge, folders: Mapping[str, Path], lora: LoraSettings, encoded: Sequence[Encoded], results: ResultsFile
) -> dict[str, Any]:
    """The loss before and after fp32's training, and for each adapter its loss and how far it is above fp32's."""
    figures: dict[str, Any] = {"dropout": lora.dropout, "before": judge.compute_loss()}
    figures |= {"fp32_training": train(judge.engine, encoded, SEED), "fp32": judge.compute_loss()}
    adapters: dict[str, Any] = {}
    for name, folder in folders.items():
        try:
            loss = judge.compute_loss(load_adapter(folder, lora))
        except LorgnetteError as error:
            adapters[name] = {"failed": str(error)}
        else:
            adapters[name] = {"loss": loss, "above_fp32": loss - figures["fp32"]}
        results.update(**figures, adapters=adapters)
    return figures | {"adapters": adapters}


def run_all(arguments: argparse.Namespace) -> None:
    lora = LoraSettings(rank=RANK, alpha=16, dropout=arguments.dropout)
    results = ResultsFile(arguments.out, ["bench/trained_loss.py"], name_device(), arguments.budget)
    checkpoint = BaseCheckpoint.from_folder(arguments.job / "model")
    processor = Processor.from_folder(checkpoint.folder, ProcessorSettings(image_size=(arguments.side, arguments.side)))
    rows = data.read(arguments.job / "captions.csv", prompt="COCO Yes:")
    encoded = [processor.encode(row) for row in rows if isinstance(row, Example)][:-NUM_HELD_OUT]
    dtype = torch.bfloat16 if HAS_GPU else torch.float32
    features = Features(
        LazyTower(DEVICE, dtype, partial(load_tower, checkpoint, dtype)), processor.image_processor, is_live=False
    )
    features.prepare([grid for example in encoded for grid in example.grids])
    features.release_tower()
    judge = Judge(checkpoint, features, lora, encoded[:NUM_JUDGED])
    figures = judge_adapters(judge, arguments.adapters, lora, encoded, results)
    if HAS_GPU and lora.dropout and results.fits(30, "spread"):
        losses = [judge.compute_loss(state) for state in train_fast(checkpoint, features, lora, encoded)]
        results.update(masks=losses, spread=max(losses) - min(losses), mean=statistics.mean(losses))
    shown = {name: row.get("above_fp32", row.get("failed")) for name, row in figures["adapters"].items()}
    print(json.dumps({"before": figures["before"], "fp32": figures["fp32"], "above fp32": shown}), flush=True)


def parse_adapter(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=FOLDER")
    return name, Path(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("adapters", nargs="*", type=parse_adapter)
    parser.add_argument("--side", type=int, default=280, help="pixels of an image's side")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_intermixed_args()
    arguments.adapters = dict(arguments.adapters)
    run_all(arguments)
