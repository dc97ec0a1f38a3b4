"""The reference engine: transformers' modules and PEFT's adapter, driven from a PackedBatch. Runs everywhere.

It goes through public seams only: the language model takes `inputs_embeds` and `position_ids`, the attention function
is ours by name, and the head sees the rows that predict a label and no others.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from lorgnette.engine.packed_attention import build_segments
from lorgnette.features.image_features import Features
from lorgnette.types import PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel


class ReferenceEngine:
    """Losses of packed batches; gradients land in the adapter's `.grad`."""

    prefix_sharing: bool = False
    eval_prefix_sharing: bool = False

    def __init__(self, model: "PeftModel", features: Features) -> None:
        base = model.get_base_model()
        self.model, self.features = model, features
        self._decoder = base.get_submodule("model.language_model")
        self._head = base.get_submodule("lm_head")
        self._embedding = base.get_input_embeddings()
        self.device = self._embedding.weight.device
        self.dtype = self._embedding.weight.dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def backward(self, batch: PackedBatch, rng_offset: int) -> Float[Tensor, ""]:
        """Σ weights · cross-entropy under dropout, which torch draws from a state of its own; the gradient is added
        up."""
        self.model.train()
        loss = self.compute_weighted_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def compute_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """Σ weights · cross-entropy without dropout. The passes of a step add up to its mean loss."""
        self.model.eval()
        return self.compute_weighted_loss(batch)

    def sync_weights(self) -> None:
        """Nothing to do: the optimizer's parameters are PEFT's own."""

    def compute_weighted_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        return (self.compute_label_losses(batch) * self._to_device(batch.label_weights)).sum()

    def compute_label_losses(self, batch: PackedBatch) -> Float[Tensor, " R"]:
        """Cross-entropy of every label, in fp32."""
        with self._autocast():
            hidden = self._decoder(
                inputs_embeds=self._embed(batch)[None],
                position_ids=self._to_device(batch.position_ids)[:, None],
                attention_mask={"full_attention": None},  # segments say what may see what: no mask is built
                use_cache=False,
                segments=build_segments([0, *np.unique(batch.visible_until).tolist()], self.device),
            ).last_hidden_state[0]
            logits = self._head(hidden.index_select(0, self._to_device(batch.label_indices)))
        return cross_entropy(logits.float(), self._to_device(batch.targets).long(), reduction="none")

    def _embed(self, batch: PackedBatch) -> Float[Tensor, "T C"]:
        embedded: Tensor = self._embedding(self._to_device(batch.input_ids))
        if not batch.grids:
            return embedded
        features = (
            self.features.gather(batch.grids).to(embedded.dtype).index_select(0, self._to_device(batch.feature_indices))
        )
        return embedded.index_copy(0, self._to_device(batch.image_token_indices).long(), features)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[object]:
        """bf16 weights with fp32 adapters: PEFT's default pairing, computed in bf16."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext()
