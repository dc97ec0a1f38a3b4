"""What the parity tests share: one tiny model with a lively adapter, run by us and by plain transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lorgnette.config import Encode, Lora
from lorgnette.data import load as load_picture
from lorgnette.engine.hf_loading import load
from lorgnette.engine.peft_adapter import attach
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, Tower
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.processor import Encoder
from lorgnette.types import IGNORED, Encoded, PackedBatch

CPU = torch.device("cpu")
Gradients = dict[str, Tensor]


class Bench:
    """One tiny model with a lively adapter, run by us and by transformers."""

    def __init__(
        self, folder: Path, lora: Lora, encode: Encode, device: torch.device = CPU, dtype: torch.dtype = torch.float32
    ) -> None:
        base = load(Checkpoint.at(folder), device, dtype)
        self.encoder = Encoder.of_folder(folder, encode)
        self.model: PeftModel = attach(base, FAMILIES["qwen2_vl"], lora, seed=0)
        torch.manual_seed(1)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape) * 0.05)  # drawn on the CPU: alike everywhere
        live = lora.towers != ("language",)
        self.features = Features(Tower(base), self.encoder.rule, live=live)
        self.engine = ReferenceEngine(self.model, self.features)
        self.model.train()

    def gradients(self) -> Gradients:
        found = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return found

    def packed(self, batches: Sequence[PackedBatch]) -> tuple[Tensor, Gradients]:
        """Losses of every label in order, and the gradient of Σ weights · loss."""
        losses = []
        for batch in batches:
            self.features.prepare(batch.grids)
            loss = self.engine.label_losses(batch)
            (loss * torch.from_numpy(batch.weights).to(loss.device)).sum().backward()
            losses.append(loss.detach())
        return torch.cat(losses), self.gradients()

    def padded_inputs(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A right-padded batch as transformers takes it, labels included."""
        longest = max(len(e.tokens) for e in examples)
        ids = torch.full((len(examples), longest), self.encoder.tokenizer.control["<|endoftext|>"])
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, e in enumerate(examples):
            ids[row, : len(e.tokens)] = torch.from_numpy(e.tokens).long()
            labels[row, : len(e.tokens)] = torch.from_numpy(e.labels).long()
            mask[row, : len(e.tokens)] = 1
        grids = [grid for e in examples for grid in e.grids]
        rule = self.encoder.rule
        patches = [rule.patches(rule.pixels(load_picture(grid.picture.path))) for grid in grids]
        images = {
            "pixel_values": torch.from_numpy(np.concatenate(patches)),
            "image_grid_thw": torch.tensor([[g.t, g.h, g.w] for g in grids]),
        }
        types = ((ids == self.encoder.tokenizer.control["<|image_pad|>"]) & (mask == 1)).int()
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "mm_token_type_ids": types, **images}
        return {name: values.to(self.engine.device) for name, values in inputs.items()}

    def padded(self, examples: Sequence[Encoded]) -> tuple[Tensor, Gradients]:
        """The same as `packed` from transformers' own forward and attention."""
        inputs = self.padded_inputs(examples)
        labels = inputs.pop("labels")
        base = self.model.get_base_model()
        base.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
        logits = self.model(**inputs).logits
        base.set_attn_implementation({"text_config": "lorgnette_packed", "vision_config": "sdpa"})
        wanted = labels[:, 1:] != IGNORED
        losses = torch.nn.functional.cross_entropy(logits[:, :-1][wanted], labels[:, 1:][wanted], reduction="none")
        losses.mean().backward()
        return losses.detach(), self.gradients()


@pytest.fixture(scope="session")
def make_bench(tiny: Path) -> Callable[..., Any]:
    """make_bench(Lora(…), Encode(…)[, device, dtype])"""
    return lambda *words: Bench(tiny, *words)
