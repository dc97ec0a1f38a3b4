"""The interface of an engine, as the trainer uses it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.types import PackedBatch


@runtime_checkable
class Engine(Protocol):
    """Computes losses and gradients of micro-batches. Results stay on its device."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The trained fp32 parameters."""

    @property
    def flat_grad(self) -> Float32[Tensor, " n"]:
        """The gradients of all parameters, and `distributed.TAIL` numbers behind them."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights."""

    @property
    def loss_scale(self) -> Float32[Tensor, ""] | None:
        """What gradients are multiplied by; the optimizer changes it in place. None: they are not."""

    @property
    def prefix_sharing(self) -> bool:
        """Whether examples of a training micro-batch may share a prefix."""

    @property
    def eval_prefix_sharing(self) -> bool:
        """The same without dropout."""

    def backward(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """The loss Σ weight · cross-entropy; its gradient, times the loss scale, is added to the parameters'."""

    def compute_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """The same loss without dropout and gradient."""

    def sync_weights(self) -> None:
        """Copy the parameters to where they are computed with. Call it after every optimizer step."""
