"""Cross-entropy of label rows; the logits' gradient takes the logits' place."""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_BLOCK = 8192


def cross_entropy_(
    logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"], weights: Float32[Tensor, " R"]
) -> Float32[Tensor, " R"]:
    """−log softmax(logits)[target] of every row; `logits` become weight · (softmax − onehot), the gradient of
    Σ weight · cross-entropy."""
    if not logits.is_cuda:
        losses, grad = cross_entropy_reference(logits, targets, weights)
        logits.copy_(grad)
        return losses
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _cross_entropy_kernel[(len(logits),)](
        logits, targets, weights, losses, V=logits.shape[1], BLOCK=_BLOCK, num_warps=16
    )
    return losses


def cross_entropy_reference(
    logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"], weights: Float32[Tensor, " R"]
) -> tuple[Float32[Tensor, " R"], Float[Tensor, "R V"]]:
    likely = logits.float().log_softmax(-1)
    losses = -likely.gather(1, targets[:, None].long())[:, 0]
    onehot = torch.zeros_like(likely).scatter_(1, targets[:, None].long(), 1.0)
    return losses, (weights[:, None] * (likely.exp() - onehot)).to(logits.dtype)


if triton is not None:

    @triton.jit
    @no_type_check
    def _cross_entropy_kernel(logits, targets, weights, losses, V: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        start = logits + row * V
        highest = tl.full((BLOCK,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, V, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            value = tl.load(start + at, mask=at < V, other=float("-inf")).to(tl.float32)
            higher = tl.maximum(highest, value)
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(highest - safe) + tl.exp(value - safe)
            highest = higher
        top = tl.max(highest)
        lse = top + tl.log(tl.sum(total * tl.exp(highest - top)))
        target = tl.load(targets + row)
        weight = tl.load(weights + row)
        tl.store(losses + row, lse - tl.load(start + target).to(tl.float32))
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for begin in range(0, V, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            value = tl.load(start + at, mask=at < V, other=float("-inf")).to(tl.float32)
            grad = weight * (tl.exp(value - lse) - tl.where(at == target, 1.0, 0.0))
            tl.store(start + at, grad.to(logits.dtype.element_ty), mask=at < V)
