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

from lorgnette.engine.packed_attention import segments_of
from lorgnette.features.image_features import Features
from lorgnette.processing.packing import Share
from lorgnette.types import PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel


class ReferenceEngine:
    """Losses of packed batches; gradients land in the adapter's `.grad`."""

    share: Share = "none"
    share_in_evaluation: Share = "none"

    def __init__(self, model: "PeftModel", features: Features) -> None:
        base = model.get_base_model()
        self.model, self.features = model, features
        self._decoder = base.get_submodule("model.language_model")
        self._head = base.get_submodule("lm_head")
        self._embedding = base.get_input_embeddings()
        self.device = self._embedding.weight.device
        self.dtype = self._embedding.weight.dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def backward(self, batch: PackedBatch, draw: int) -> Float[Tensor, ""]:
        """Σ weights · cross-entropy under dropout, which torch draws from a state of its own; the gradient is added
        up."""
        self.model.train()
        loss = self.weighted(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """Σ weights · cross-entropy without dropout. The passes of a step add up to its mean loss."""
        self.model.eval()
        return self.weighted(batch)

    def updated(self) -> None:
        """Nothing to do: the optimizer's parameters are PEFT's own."""

    def weighted(self, batch: PackedBatch) -> Float[Tensor, ""]:
        return (self.label_losses(batch) * self._moved(batch.weights)).sum()

    def label_losses(self, batch: PackedBatch) -> Float[Tensor, " R"]:
        """Cross-entropy of every label, in fp32."""
        with self._autocast():
            hidden = self._decoder(
                inputs_embeds=self._embedded(batch)[None],
                position_ids=self._moved(batch.positions)[:, None],
                attention_mask={"full_attention": None},  # segments say what may see what: no mask is built
                use_cache=False,
                segments=segments_of([0, *np.unique(batch.ends).tolist()], self.device),
            ).last_hidden_state[0]
            logits = self._head(hidden.index_select(0, self._moved(batch.label_rows)))
        return cross_entropy(logits.float(), self._moved(batch.targets).long(), reduction="none")

    def _embedded(self, batch: PackedBatch) -> Float[Tensor, "T C"]:
        embedded: Tensor = self._embedding(self._moved(batch.tokens))
        if not batch.grids:
            return embedded
        features = self.features.of(batch.grids).to(embedded.dtype).index_select(0, self._moved(batch.feature_rows))
        return embedded.index_copy(0, self._moved(batch.image_rows).long(), features)

    def _moved(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[object]:
        """bf16 weights with fp32 adapters: PEFT's default pairing, computed in bf16."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext()
