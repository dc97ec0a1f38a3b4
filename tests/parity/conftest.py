"""One tiny model with a random adapter, run by lorgnette and by plain transformers."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.data import load_image
from lorgnette.engine.peft_engine import ReferenceEngine, add_adapter, load_base_model
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Encoded, PackedBatch

CPU = torch.device("cpu")
Gradients = dict[str, Tensor]


class ModelPair:
    """One tiny model with a random adapter, run by lorgnette and by transformers."""

    def __init__(
        self,
        folder: Path,
        lora: LoraSettings,
        processor: ProcessorSettings,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        checkpoint = BaseCheckpoint.from_folder(folder)
        base = load_base_model(checkpoint, device, dtype)
        self.folder, self.family, self.lora = folder, checkpoint.family, lora
        self.processor = Processor.from_folder(folder, processor)
        self.model: PeftModel = add_adapter(base, self.family, lora, seed=0)
        torch.manual_seed(1)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(torch.randn(parameter.shape) * 0.05)  # on the CPU: equal on every device
        is_live = lora.parts != ("language",)
        self.features = Features(HfVisionTower(base), self.processor.image_processor, is_live=is_live)
        self.engine = ReferenceEngine(self.model, self.features)
        self.model.train()
        self.compute_patches = functools.cache(self._compute_patches)

    def _compute_patches(self, path: Path) -> Any:
        image_processor = self.processor.image_processor
        return image_processor.patchify(image_processor.resize(load_image(path)))

    def take_gradients(self) -> Gradients:
        gradients = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        return gradients

    def compute_packed(self, batches: Sequence[PackedBatch]) -> tuple[Tensor, Gradients]:
        """Return the loss of every label in order, and the gradients of Σ weights · loss."""
        losses = []
        for batch in batches:
            self.features.prepare(batch.grids)
            loss = self.engine.compute_label_losses(batch)
            (loss * torch.from_numpy(batch.label_weights).to(loss.device)).sum().backward()
            losses.append(loss.detach())
        return torch.cat(losses), self.take_gradients()

    def build_padded_inputs(self, examples: Sequence[Encoded]) -> dict[str, Tensor]:
        """A right-padded batch for transformers, with labels."""
        max_length = max(len(e.input_ids) for e in examples)
        ids = torch.full((len(examples), max_length), self.processor.tokenizer.control_tokens["<|endoftext|>"])
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
        for row, e in enumerate(examples):
            ids[row, : len(e.input_ids)] = torch.from_numpy(e.input_ids).long()
            labels[row, : len(e.input_ids)] = torch.from_numpy(e.labels).long()
            mask[row, : len(e.input_ids)] = 1
        grids = [grid for e in examples for grid in e.grids]
        images: dict[str, Tensor] = {}
        if grids:
            patches = [self.compute_patches(grid.image.path) for grid in grids]
            images["pixel_values"] = torch.from_numpy(np.concatenate(patches))
            images["image_grid_thw"] = torch.tensor([[g.t, g.h, g.w] for g in grids])
        types = ((ids == self.processor.tokenizer.control_tokens["<|image_pad|>"]) & (mask == 1)).int()
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels, "mm_token_type_ids": types, **images}
        return {name: values.to(self.engine.device) for name, values in inputs.items()}

    def compute_padded(self, examples: Sequence[Encoded]) -> tuple[Tensor, Gradients]:
        """As `packed`, with transformers' own forward pass and attention."""
        inputs = self.build_padded_inputs(examples)
        labels = inputs.pop("labels")
        base = self.model.get_base_model()
        base.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
        logits = self.model(**inputs).logits
        base.set_attn_implementation({"text_config": "lorgnette_packed"})
        has_label = labels[:, 1:] != IGNORE_INDEX
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1][has_label], labels[:, 1:][has_label], reduction="none"
        )
        losses.mean().backward()
        return losses.detach(), self.take_gradients()


@pytest.fixture(scope="session")
def make_pair(tiny: Path, tiny_family: Callable[..., Path]) -> Callable[..., ModelPair]:
    """make_pair(LoraSettings(…), ProcessorSettings(…)[, device, dtype][, model_type=…, is_tied=…]); without a
    model_type, the smaller tiny Qwen2-VL."""

    def make(*arguments: Any, model_type: str | None = None, **options: bool) -> ModelPair:
        return ModelPair(tiny_family(model_type, **options) if model_type else tiny, *arguments)

    return make
