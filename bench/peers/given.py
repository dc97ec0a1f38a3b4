"""What every peer is given: the samples, the adapter's and the trainer's settings. `python by_X.py WORK OUT …`

WORK holds captions.csv and its pictures, already at 280×280, training samples only; OUT is this run's own folder.
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROMPT = "COCO Yes:"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LANGUAGE = rf".*language_model.*\.({'|'.join(TARGETS)})"
CUDA = torch.cuda.is_available()
"""Without, only that a script runs can be seen: Liger's kernels and pinned memory are off."""
DEVICE = "cuda" if CUDA else "cpu"

TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 2,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch_fused",
    "bf16": True,
    "gradient_checkpointing": False,  # the whole step fits, so recomputing it would only cost time
    "use_liger_kernel": CUDA,
    "dataloader_num_workers": 8,
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": CUDA,
    "accelerator_config": {"non_blocking": CUDA},  # copies from pinned memory need not wait for the step before
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # it asks the GPU for every step's loss, which empties its queue
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": not CUDA,
}
"""transformers' TrainingArguments, which every peer's own are made from."""


@dataclass(frozen=True)
class Given:
    """samples: (picture, caption). begun: when the process was started, in seconds of time.time()."""

    model: Path
    out: Path
    samples: list[tuple[Path, str]]
    begun: float
    dropout: float

    @property
    def lora(self) -> dict[str, Any]:
        """For PEFT's LoraConfig."""
        return {"r": 64, "lora_alpha": 16, "lora_dropout": self.dropout, "bias": "none"}


def given() -> Given:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--begun", type=float, required=True)
    parser.add_argument("--dropout", type=float, default=0.05)
    words = parser.parse_args()
    with (words.work / "captions.csv").open(newline="", encoding="utf-8") as file:
        samples = [(words.work / row["image_path"], row["caption"]) for row in csv.DictReader(file)]
    return Given(words.model, words.out, samples, words.begun, words.dropout)
