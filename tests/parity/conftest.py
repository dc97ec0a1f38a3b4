"""What the parity tests share: one tiny model with a lively adapter, run by us and by plain transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.data import load_image as load_picture
from lorgnette.engine.hf_loading import load_base_model
from lorgnette.engine.peft_adapter import add_adapter
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Encoded, PackedBatch

CPU = torch.device("cpu")
Gradients = dict[str, Tensor]


class Bench:
    """One tiny model with a lively adapter, run by us and by transformers."""

    def __init__(
        self,
        folder: Path,
        lora: LoraSettings,
        encode: ProcessorSettings,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        base = load_base_model(BaseCheckpoint.from_folder(folder), device, dtype)
        self.encoder = Processor.from_folder(folder, encode)
        self.model: PeftModel = add_adapter(base, FAMILIES["qwen2_vl"], lora, seed=0)
        torch.manual_seed(1)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape) * 0.05)  # drawn on the CPU: alike everywhere
        live = lora.parts != ("language",)
        self.features = Features(HfVisionTower(base), self.encoder.image_processor, is_live=live)
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
            loss = self.engine.compute_label_losses(batch)
            (loss * torch.from_numpy(batch.label_weights).to(loss.device)).sum().backward()
            losses.append(loss.detach())
        return torch.cat(losses), self.gradients()

    def padded_inputs(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A right-padded batch as transformers takes it, labels included."""
        longest = max(len(e.input_ids) for e in examples)
        ids = torch.full((len(examples), longest), self.encoder.tokenizer.control_tokens["<|endoftext|>"])
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
        for row, e in enumerate(examples):
            ids[row, : len(e.input_ids)] = torch.from_numpy(e.input_ids).long()
            labels[row, : len(e.input_ids)] = torch.from_numpy(e.labels).long()
            mask[row, : len(e.input_ids)] = 1
        grids = [grid for e in examples for grid in e.grids]
        rule = self.encoder.image_processor
        patches = [rule.patchify(rule.resize(load_picture(grid.image.path))) for grid in grids]
        images = {
            "pixel_values": torch.from_numpy(np.concatenate(patches)),
            "image_grid_thw": torch.tensor([[g.t, g.h, g.w] for g in grids]),
        }
        types = ((ids == self.encoder.tokenizer.control_tokens["<|image_pad|>"]) & (mask == 1)).int()
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
        wanted = labels[:, 1:] != IGNORE_INDEX
        losses = torch.nn.functional.cross_entropy(logits[:, :-1][wanted], labels[:, 1:][wanted], reduction="none")
        losses.mean().backward()
        return losses.detach(), self.gradients()


@pytest.fixture(scope="session")
def make_bench(tiny: Path) -> Callable[..., Any]:
    """make_bench(Lora(…), Encode(…)[, device, dtype])"""
    return lambda *words: Bench(tiny, *words)
