"""u = mask · (x·Aᵀ): what an adapter makes of a linear layer's input, for the few tokens of a decoding step.

    x [T, C]    A [R, C], the s·A of n projections, of r ranks each    mask [T, r], the same for every projection

A has a few hundred rows of a few thousand values: a product that takes 1 µs to read. A library's product and a masking
kernel take 8 µs on an H200, four times in each layer. Here every program multiplies a part of C for some rows of A, and
the last one to finish adds the parts, in order, and masks the sum. Sums are fp32; the result is rounded once.
"""

from typing import no_type_check

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorgnette.kernels.triton_import import tl, triton
from lorgnette.types import AMPERE

MAX_TOKENS = 32
"""With more, the library's product is faster."""
_BLOCK_R = 16
_PART_BYTES = 1024
"""Of a row of A, in one program."""


def allocate_counters(num_columns: int, device: torch.device) -> Int32[Tensor, " _"]:
    """Zeros that the kernel counts its programs in, and leaves as zeros. Only one stream at a time may use them."""
    return torch.zeros(-(-num_columns // _BLOCK_R), dtype=torch.int32, device=device)


def compute_adapter_input(
    x: Float[Tensor, "T C"],
    a: Float[Tensor, "R C"],
    rank_mask: Float[Tensor, "#T r"] | None,
    counters: Int32[Tensor, " _"],
    out: Float[Tensor, "T R"],
) -> None:
    """`x` and `out` may be columns of wider matrices. rank_mask: None: all ones. counters: of `allocate_counters`."""
    if not x.is_cuda or len(x) > MAX_TOKENS:
        torch.mm(x, a.T, out=out)
        if rank_mask is not None:
            r = rank_mask.shape[1]
            out.view(len(out), out.shape[1] // r, r).mul_(rank_mask[:, None])
        return
    (T, C), R = x.shape, len(a)
    part = _PART_BYTES // x.element_size()
    # Before Ampere Triton multiplies from registers.
    block_c = part if torch.cuda.get_device_capability(x.device) >= AMPERE else part // 8
    blocks, splits, block_t = triton.cdiv(R, _BLOCK_R), triton.cdiv(C, part), max(16, triton.next_power_of_2(T))
    parts = torch.empty(splits, block_t, blocks * _BLOCK_R, dtype=torch.float32, device=x.device)
    mask = x if rank_mask is None else rank_mask
    _adapter_input_kernel[(blocks, splits)](
        x, a, mask, counters, parts, out, T, R, C, mask.shape[1], x.stride(0), a.stride(0),
        0 if len(mask) == 1 else mask.stride(0), out.stride(0), HAS_MASK=rank_mask is not None, SPLITS=splits,
        BLOCK_T=block_t, BLOCK_R=_BLOCK_R, PART_C=part, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    @no_type_check
    def _adapter_input_kernel(
        x, a, mask, counters, parts, out, T, R, C, r, x_stride, a_stride, mask_stride, out_stride,
        HAS_MASK: tl.constexpr, SPLITS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr,
        PART_C: tl.constexpr, BLOCK_C: tl.constexpr,
    ):  # fmt: skip
        """One block of A's rows, and one part of C."""
        block, split = tl.program_id(0), tl.program_id(1)
        offs_t, offs_r = tl.arange(0, BLOCK_T), block * BLOCK_R + tl.arange(0, BLOCK_R)
        mask_t, mask_r = (offs_t < T)[:, None], (offs_r < R)[None, :]
        u = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for start in range(0, PART_C, BLOCK_C):
            offs_c = split * PART_C + start + tl.arange(0, BLOCK_C)
            mask_c = offs_c < C
            x_ptrs = x + offs_t[:, None] * x_stride + offs_c[None, :]
            x_part = tl.load(x_ptrs, mask=mask_t & mask_c[None, :], other=0.0)
            a_ptrs = a + offs_r[None, :] * a_stride + offs_c[:, None]
            a_part = tl.load(a_ptrs, mask=mask_r & mask_c[:, None], other=0.0)
            u += tl.dot(x_part, a_part, input_precision="ieee")
        size = BLOCK_T * tl.num_programs(0) * BLOCK_R
        offs_part = offs_t[:, None] * (tl.num_programs(0) * BLOCK_R) + offs_r[None, :]
        tl.store(parts + split * size + offs_part, u)
        # All threads have stored before one of them counts the program; the last program sees all parts.
        tl.debug_barrier()
        if tl.atomic_add(counters + block, 1) == SPLITS - 1:
            tl.debug_barrier()
            u = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
            for i in tl.static_range(SPLITS):
                u += tl.load(parts + i * size + offs_part, cache_modifier=".cg")
            if HAS_MASK:
                mask_ptrs = mask + offs_t[:, None] * mask_stride + (offs_r % r)[None, :]
                u *= tl.load(mask_ptrs, mask=mask_t & mask_r, other=0.0)
            out_ptrs = out + offs_t[:, None] * out_stride + offs_r[None, :]
            tl.store(out_ptrs, u.to(out.dtype.element_ty), mask=mask_t & mask_r)
            tl.store(counters + block, 0)
