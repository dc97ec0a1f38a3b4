"""One meter for every peer: a callback of transformers' Trainer, which all of them take."""

import json
import sys
import time
from importlib.metadata import packages_distributions, version
from typing import Any

import torch
from given import Given
from transformers import TrainerCallback

WARM_UP = 5


class Meter(TrainerCallback):
    """Times a run, saves the adapter when it ends, and writes OUT/run.json.

    The GPU is waited for twice: after step WARM_UP and at the end, nowhere else.
    """

    def __init__(self, given: Given) -> None:
        self.given = given
        self.warm: float | None = None
        self.losses: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self.warm = now()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append([state.global_step, float(logs["loss"])])

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        last = now()
        model.save_pretrained(self.given.out / "adapter")
        saved = time.time()
        steps = state.global_step
        run = {
            "prep_s": self.first - self.given.begun,
            "training_s": last - self.first,
            "saved_s": saved - self.given.begun,
            "steps": steps,
            "steady_steps": steps - WARM_UP if self.warm else 0,
            "steady_s": last - self.warm if self.warm else None,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "losses": self.losses,
            "versions": versions(),
        }
        (self.given.out / "run.json").write_text(json.dumps(run))


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def versions() -> dict[str, str]:
    """Of every package that was imported."""
    owners = packages_distributions()
    used = {owner for module in list(sys.modules) for owner in owners.get(module, ())}
    return {name: version(name) for name in sorted(filter(None, used), key=str.lower)}
