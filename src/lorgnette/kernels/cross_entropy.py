"""Cross-entropy of label rows; the gradient overwrites the logits."""

from typing import no_type_check

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton

_BLOCK = 8192


def cross_entropy_(
    logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"], weights: Float32[Tensor, " R"]
) -> Float32[Tensor, " R"]:
    """−log softmax(logits)[target] of every row. `logits` become weight · (softmax − onehot), the gradient of
    Σ weight · cross-entropy."""
    if not logits.is_cuda:
        log_probs = logits.float().log_softmax(-1)
        losses = -log_probs.gather(1, targets[:, None].long())[:, 0]
        onehot = torch.zeros_like(log_probs).scatter_(1, targets[:, None].long(), 1.0)
        logits.copy_(weights[:, None] * (log_probs.exp() - onehot))
        return losses
    R, V = logits.shape
    losses = torch.empty(R, dtype=torch.float32, device=logits.device)
    _cross_entropy_kernel[(R,)](logits, targets, weights, losses, V=V, BLOCK=_BLOCK, num_warps=16)
    return losses


if triton is not None:

    @triton.jit
    @no_type_check
    def _cross_entropy_kernel(logits, targets, weights, losses, V: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        row_ptr = logits + row * V
        # Online softmax, a running maximum and sum per lane: the row is read once, lanes are combined at the end.
        m_i = tl.full((BLOCK,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            offs_v = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + offs_v, mask=offs_v < V, other=float("-inf")).to(tl.float32)
            m_new = tl.maximum(m_i, x)
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            l_i = l_i * tl.exp(m_i - m_safe) + tl.exp(x - m_safe)
            m_i = m_new
        m = tl.max(m_i)
        lse = m + tl.log(tl.sum(l_i * tl.exp(m_i - m)))
        target = tl.load(targets + row)
        weight = tl.load(weights + row)
        tl.store(losses + row, lse - tl.load(row_ptr + target).to(tl.float32))
        tl.debug_barrier()  # the target's logit must be read before it is overwritten
        # The gradient in place: a second matrix of this size would be the step's largest tensor.
        for start in range(0, V, BLOCK):
            offs_v = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + offs_v, mask=offs_v < V, other=float("-inf")).to(tl.float32)
            grad = weight * (tl.exp(x - lse) - tl.where(offs_v == target, 1.0, 0.0))
            tl.store(row_ptr + offs_v, grad.to(logits.dtype.element_ty), mask=offs_v < V)
