"""The inputs of every peer: samples, adapter settings and trainer settings. `python by_X.py WORK OUT …`

WORK has captions.csv and its images, already at the job's size, training samples only; OUT is the folder of this run.
Under torchrun each process has a share of a step's samples.
"""

import argparse
import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from job_start import set_order
from PIL import Image

PROMPT = "COCO Yes:"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LANGUAGE = rf".*language_model.*\.({'|'.join(TARGETS)})"
CUDA = torch.cuda.is_available()
"""Without a GPU, Liger's kernels and pinned memory are off: that only shows that a script runs."""
DEVICE = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if CUDA else "cpu"

TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 2,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch_fused",
    "bf16": True,
    "gradient_checkpointing": False,  # the whole step fits, so recomputing would only cost time
    "use_liger_kernel": CUDA and "NO_LIGER" not in os.environ,
    "dataloader_num_workers": 8,
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": CUDA,
    "accelerator_config": {"non_blocking": CUDA},  # copies from pinned memory do not wait for the step before
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # it reads every step's loss, which empties the GPU's queue
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": not CUDA,
}
"""transformers' TrainingArguments; every peer's settings are made from them."""


@dataclass(frozen=True)
class Inputs:
    """samples: (image, caption). started_at: when the process started, in seconds of time.time(). start: the folder
    with the first adapter and the order of the samples; None: the trainer's own."""

    model: Path
    out: Path
    samples: list[tuple[Path, str]]
    started_at: float
    dropout: float
    batch_size: int
    max_steps: int
    start: Path | None

    @property
    def trainer(self) -> dict[str, Any]:
        """For transformers' TrainingArguments. max_steps: -1 for the epochs of the job."""
        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        own = {"per_device_train_batch_size": self.batch_size // num_processes, "max_steps": self.max_steps}
        if num_processes > 1:
            own["ddp_find_unused_parameters"] = False  # all are used, and to look for others takes time
        return TRAINER | own

    @property
    def lora(self) -> dict[str, Any]:
        """For PEFT's LoraConfig."""
        return {"r": 64, "lora_alpha": 16, "lora_dropout": self.dropout, "bias": "none"}


def read_config(run: Inputs) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run.model / "config.json").read_text(encoding="utf-8"))
    return config


def read_model_type(run: Inputs) -> str:
    return str(read_config(run)["model_type"])


def count_pixels(run: Inputs) -> int:
    """Of every sample's image: no peer makes them smaller."""
    with Image.open(run.samples[0][0]) as image:
        return image.width * image.height


def parse_inputs() -> Inputs:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--started-at", type=float, required=True)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--samples", type=int, default=16, help="of a step")
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--start", type=Path)
    arguments = parser.parse_args()
    with (arguments.work / "captions.csv").open(newline="", encoding="utf-8") as file:
        samples = [(arguments.work / row["image_path"], row["caption"]) for row in csv.DictReader(file)]
    set_order(arguments.start)
    return Inputs(
        arguments.model, arguments.out, samples, arguments.started_at, arguments.dropout, arguments.samples,
        arguments.steps, arguments.start,
    )  # fmt: skip
