"""The meter of every peer: a callback of transformers' Trainer, which all of them accept."""

import json
import os
import sys
import time
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
from inputs import Inputs
from job_start import load_first_adapter
from launch import measure_launch_us
from transformers import TrainerCallback

NUM_WARMUP_STEPS = 5


class Meter(TrainerCallback):
    """Times a run, from the job's first adapter, and saves its adapter. Writes OUT/run.json after the last step, and
    again with `saved_s` when the adapter is on disk: the parent process may end the peer then.

    Synchronizes with the GPU three times: before the first step, after step NUM_WARMUP_STEPS, and after the last.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.started_at = inputs, inputs.started_at
        self.is_main = os.environ.get("RANK", "0") == "0"
        self.warm_at: float | None = None
        self.tokens: int | None = None
        self.losses: list[list[float]] = []
        self.run: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        before = read_time()
        self.launch_us = measure_launch_us()
        if self.inputs.start is not None:
            load_first_adapter(model, self.inputs.start)
        self.count_tokens(model)
        self.first_at = read_time()
        self.started_at += self.first_at - before  # this is the bench's work, not the peer's

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == NUM_WARMUP_STEPS:
            self.warm_at = read_time()
        if state.global_step == state.max_steps:
            self.record_steps(state.global_step, read_time(), model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append([state.global_step, float(logs["loss"])])

    def count_tokens(self, model: torch.nn.Module) -> None:
        """Record how many tokens, with padding, the decoder computes in the first step: images too must be there."""
        decoder = next(module for name, module in model.named_modules() if name.endswith("language_model"))

        def record(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.tokens = kwargs["inputs_embeds"].shape[:-1].numel()
            hook.remove()

        hook = decoder.register_forward_pre_hook(record, with_kwargs=True)

    def record_steps(self, steps: int, last_at: float, model: Any) -> None:
        cuda = torch.cuda.is_available()
        self.run = {
            "prep_s": self.first_at - self.started_at,
            "training_s": last_at - self.first_at,
            "steps": steps,
            "steady_steps": steps - NUM_WARMUP_STEPS if self.warm_at else 0,
            "steady_s": last_at - self.warm_at if self.warm_at else None,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "launch_us": self.launch_us,
            "first_step_tokens": self.tokens,
        }
        self.write(self.run)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.run:  # it ended before max_steps
            self.record_steps(state.global_step, read_time(), model)
        if not self.is_main:
            return
        folder = self.inputs.out / "adapter"
        model.save_pretrained(folder)
        saved_at = time.time()
        size = sum(file.stat().st_size for file in folder.glob("adapter_model.*"))
        if not size:
            raise RuntimeError(f"no adapter in {folder}")
        self.run |= {"saved_s": saved_at - self.started_at, "adapter_mb": size / 1e6}
        self.write(self.run | {"losses": self.losses, "versions": read_versions()})

    def write(self, run: dict[str, Any]) -> None:
        if not self.is_main:
            return
        temporary = self.inputs.out / "run.json.part"
        temporary.write_text(json.dumps(run), encoding="utf-8")
        os.replace(temporary, self.inputs.out / "run.json")


def read_time() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def read_versions() -> dict[str, str]:
    """The version of every imported package."""
    owners = packages_distributions()
    packages = {owner for module in list(sys.modules) for owner in owners.get(module, ())}
    return {name: version(name) for name in sorted(filter(None, packages), key=str.lower)}
