"""Lets a peer start from the first adapter and take the samples in the order that bench/start.py wrote."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch.utils.data import Sampler


class JobOrder(Sampler[int]):
    """The indices of the samples; each pass is the next epoch's."""

    def __init__(self, epochs: list[list[int]]) -> None:
        self._epochs, self._passes = epochs, 0

    def __len__(self) -> int:
        return len(self._epochs[0])

    def __iter__(self) -> Iterator[int]:
        self._passes += 1
        yield from self._epochs[self._passes - 1]


@cache
def read_order(start: Path) -> list[list[int]]:
    epochs: list[list[int]] = json.loads((start / "order.json").read_text(encoding="utf-8"))
    return epochs


def set_order(start: Path | None) -> None:
    """Give every Trainer of transformers this order. Without `start` they shuffle as they do."""
    from transformers import Trainer

    if start is not None:
        Trainer._get_train_sampler = lambda self, train_dataset=None: JobOrder(read_order(start))


def load_first_adapter(model: torch.nn.Module, start: Path) -> None:
    """Copy the first A of every adapted layer in. Raises RuntimeError if the layers are not the same, or if a B is not
    zero."""
    parameters = {
        name.replace(".default", ""): p
        for name, p in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    }
    with safe_open(start / "adapter.safetensors", framework="pt") as first, torch.no_grad():
        adapted = {name for name in parameters if ".lora_A." in name}
        if adapted != set(first.keys()):
            different = sorted(adapted ^ set(first.keys()))
            raise RuntimeError(f"{len(different)} adapted layers are not the job's, such as {different[0]}")
        for name, parameter in parameters.items():
            if name in adapted:
                parameter.copy_(first.get_tensor(name))
            elif parameter.any():
                raise RuntimeError(f"{name} is not zero before the first step")
