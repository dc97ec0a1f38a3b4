"""NeMo AutoModel's recipe for vision-language models, on transformers' model with its own LoRA layers.

It does not pack: without flash-attn its packed rows have a dense mask, and the samples of the job are equally long but
for a few tokens. Its Triton kernels for LoRA are off: every process would first time 66 variants of them for each shape
of a layer, which takes longer than the job. The adapter is bf16, the recipe's own choice.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"NEMO_ENABLE_USER_MODULES": "1"}

import torch
from inputs import PROMPT, TARGETS, parse_inputs
from job_start import read_order
from meter import Meter
from nemo_automodel.components.config.loader import ConfigNode
from nemo_automodel.recipes.vlm.finetune import FinetuneRecipeForVLM
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data.distributed import DistributedSampler

run = parse_inputs()
meter = Meter(run)


class JobDataset(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return len(run.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, caption = run.samples[index]
        content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": PROMPT}]
        answer = [{"type": "text", "text": caption}]
        return {
            "conversation": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        }


def build_dataset() -> JobDataset:
    return JobDataset()


class NamedAsPeft:
    """The model's LoRA parameters under PEFT's names, for the meter."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def named_parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        return ((f"base_model.model.{name}", p) for name, p in self.model.named_parameters() if ".lora_" in name)

    def named_modules(self) -> Iterable[tuple[str, torch.nn.Module]]:
        return self.model.named_modules()

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        return (p for _, p in self.named_parameters())

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        save_file({name: p.detach().cpu() for name, p in self.named_parameters()}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": TARGETS} | run.lora
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


class Recipe(FinetuneRecipeForVLM):
    """The recipe, with a meter around its steps."""

    def run_train_validation_loop(self) -> None:
        self.named = NamedAsPeft(self.model_parts[0])
        self.last = run.max_steps if run.max_steps > 0 else 2 * len(self.dataloader)
        meter.on_train_begin(None, None, None, model=self.named)
        super().run_train_validation_loop()
        meter.on_train_end(None, SimpleNamespace(global_step=self.last), None, model=self.named)

    def log_train_metrics(self, log_data: Any) -> None:
        """Called after every step. The recipe's own method also resets the peak of memory, and so is not called."""
        step = self.step_scheduler.step + 1
        state = SimpleNamespace(global_step=step, max_steps=self.last)
        meter.on_log(None, state, None, logs={"loss": log_data.metrics["loss"]})
        meter.on_step_end(None, state, None, model=self.named)


if run.start is not None:
    DistributedSampler.__iter__ = lambda self: iter(read_order(run.start)[self.epoch])
settings = {
    "seed": 42,
    "step_scheduler": {
        "global_batch_size": run.batch_size, "local_batch_size": run.batch_size, "num_epochs": 2,
        "ckpt_every_steps": 10**6, "save_checkpoint_every_epoch": False,
        **({"max_steps": run.max_steps} if run.max_steps > 0 else {}),
    },
    "dist_env": {"backend": "nccl", "timeout_minutes": 10},
    "model": {
        "_target_": "nemo_automodel.NeMoAutoModelForImageTextToText.from_pretrained",
        "pretrained_model_name_or_path": str(run.model), "attn_implementation": "sdpa", "dtype": "bfloat16",
    },
    "processor": {
        "_target_": "transformers.AutoProcessor.from_pretrained", "pretrained_model_name_or_path": str(run.model),
    },
    "checkpoint": {"enabled": False, "checkpoint_dir": str(run.out / "checkpoints")},
    "distributed": {"strategy": "fsdp2", "dp_size": "none", "tp_size": 1, "cp_size": 1, "sequence_parallel": False},
    "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
    "dataset": {"_target_": build_dataset},
    "dataloader": {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader", "num_workers": 8, "persistent_workers": True,
        "pin_memory": torch.cuda.is_available(),
        "collate_fn": {"_target_": "nemo_automodel.components.datasets.vlm.collate_fns.qwen2_5_collate_fn"},
    },
    "optimizer": {
        "_target_": "torch.optim.AdamW", "lr": 1e-4, "weight_decay": 0.0, "betas": [0.9, 0.999], "fused": True,
    },
    "lr_scheduler": {"lr_decay_style": "linear", "lr_warmup_steps": 0, "min_lr": 0.0},
    "peft": {
        "_target_": "nemo_automodel.components._peft.lora.PeftConfig",
        "target_modules": [f"*language_model*{name}" for name in TARGETS],
        "dim": run.lora["r"], "alpha": run.lora["lora_alpha"], "dropout": run.dropout, "dropout_position": "pre",
        "use_triton": False,
    },
    "freeze_config": {"freeze_vision_tower": True, "freeze_language_model": False},
}  # fmt: skip
recipe = Recipe(ConfigNode(settings))
recipe.setup()
recipe.run_train_validation_loop()
