"""One meter for every peer: a callback of transformers' Trainer, which all of them take."""

import json
import os
import sys
import time
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
from given import Given
from host import launch_us
from transformers import TrainerCallback

WARM_UP = 5


class Meter(TrainerCallback):
    """Times a run and saves its adapter. OUT/run.json is written when the last step is done, and again with `saved_s`
    when the adapter is on disk: whoever started this may end it then, whatever the peer would still do.

    The GPU is waited for three times: before the first step, after step WARM_UP and after the last, nowhere else.
    """

    def __init__(self, given: Given) -> None:
        self.given = given
        self.warm: float | None = None
        self.losses: list[list[float]] = []
        self.run: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.launch_us = launch_us()
        self.first = now()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self.warm = now()
        if state.global_step == state.max_steps:
            self.stepped(state.global_step, now(), model)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append([state.global_step, float(logs["loss"])])

    def stepped(self, steps: int, last: float, model: Any) -> None:
        cuda = torch.cuda.is_available()
        self.run = {
            "prep_s": self.first - self.given.begun,
            "training_s": last - self.first,
            "steps": steps,
            "steady_steps": steps - WARM_UP if self.warm else 0,
            "steady_s": last - self.warm if self.warm else None,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if cuda else None,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "launch_us": self.launch_us,
        }
        self.write(self.run)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not self.run:  # it ended before the step it had been told of
            self.stepped(state.global_step, now(), model)
        folder = self.given.out / "adapter"
        model.save_pretrained(folder)
        saved = time.time()
        size = sum(file.stat().st_size for file in folder.glob("adapter_model.*"))
        if not size:
            raise RuntimeError(f"no adapter in {folder}")
        self.run |= {"saved_s": saved - self.given.begun, "adapter_mb": size / 1e6}
        self.write(self.run | {"losses": self.losses, "versions": versions()})

    def write(self, run: dict[str, Any]) -> None:
        beside = self.given.out / "run.json.part"
        beside.write_text(json.dumps(run), encoding="utf-8")
        os.replace(beside, self.given.out / "run.json")


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def versions() -> dict[str, str]:
    """Of every package that was imported."""
    owners = packages_distributions()
    used = {owner for module in list(sys.modules) for owner in owners.get(module, ())}
    return {name: version(name) for name in sorted(filter(None, used), key=str.lower)}
