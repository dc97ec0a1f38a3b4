"""The interface of an engine, as the trainer uses it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.types import PackedBatch

T = TypeVar("T")


@runtime_checkable
class Shards(Protocol):
    """The layers of a model that is cut over the ranks. A pass gathers them."""

    @property
    def is_collective(self) -> bool:
        """Whether a pass waits for all ranks, so that all run equally many."""

    world: World
    is_leading: bool
    """Whether rank 0 runs passes while the others `follow`."""

    def run_empty_pass(self, *, backward: bool) -> None:
        """Take part in a forward pass of the others, and in its backward pass, without examples."""

    def follow(self) -> None:
        """Take part in the passes of rank 0, until it sends None."""


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

    @property
    def shards(self) -> Shards | None:
        """None if this rank has the whole model."""

    def backward(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """The loss Σ weight · cross-entropy; its gradient, times the loss scale, is added to the parameters'."""

    def compute_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """The same loss without dropout and gradient."""

    def compute_label_losses(self, batch: PackedBatch) -> Float[Tensor, " R"]:
        """Cross-entropy of every label, in fp32, without dropout."""

    def sync_weights(self) -> None:
        """Copy the parameters to where they are computed with. Call it after every optimizer step."""


@contextmanager
def refuse_oom_of_shards(shards: Shards | None, num_tokens: int) -> Iterator[None]:
    """Where ranks gather layers together, none can repeat a pass in smaller ones: the others wait in it.

    num_tokens: of the pass. Raises LorgnetteError in place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if shards is None or not shards.is_collective:
            raise
        message = f"out of memory in a micro-batch of {num_tokens} tokens, with layers that are sharded over the GPUs"
        hint = f"use train.max_tokens_per_microbatch={num_tokens // 2}, or more GPUs"
        raise LorgnetteError(message, where=f"rank {shards.world.rank} on {shards.world.machine}", hint=hint) from error


def run_on_main_rank(world: World, shards: Shards | None, function: Callable[[], T]) -> T | None:
    """`function()` on rank 0, None on the others, which take part in its passes if the model is sharded."""
    if not world.is_main:
        if shards is not None:
            shards.follow()
        return None
    if shards is None:
        return function()
    shards.is_leading = True
    try:
        return function()
    finally:
        shards.is_leading = False
        world.broadcast_object(None)
