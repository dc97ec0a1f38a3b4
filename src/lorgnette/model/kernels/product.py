"""What an adapter adds to the gradient of its input, Σᵢ maskᵢ · (uᵢ·aᵢ), added where it belongs: the products are
narrow and the sum is wide, so that it costs no more than to read and write what it is added to.
"""

from dataclasses import dataclass
from typing import no_type_check

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.model.kernels.dropout import Mask

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

TILE = {"BT": 64, "BC": 128, "num_warps": 8}
"""Rows and columns that a program makes."""


@dataclass(frozen=True, slots=True)
class Product:
    """Σᵢ maskᵢ · (uᵢ·aᵢ), without a mask Σᵢ uᵢ·aᵢ. `u` may be columns of a wider matrix; the masks are those of
    `dropped`, salted `salt` and on."""

    u: Float[Tensor, "n T r"]
    a: Float[Tensor, "n r C"]
    mask: Mask | None
    salt: int

    def made(self) -> Float32[Tensor, "T C"]:
        """The reference."""
        each = [u.float() @ a.float() for u, a in zip(self.u, self.a, strict=True)]
        if self.mask is not None:
            each = [made * self.mask.of(made, self.salt + i) for i, made in enumerate(each)]
        return torch.stack(each).sum(0)

    @property
    def block(self) -> int:
        """Of the rank, what a program multiplies at once: a power of two."""
        return min(64, max(16, 1 << (self.u.shape[2] - 1).bit_length()))


def add_product(out: Float[Tensor, "T C"], product: Product) -> None:
    """out += product. `out` may be columns of a wider matrix."""
    if not out.is_cuda:
        out.copy_(out.float() + product.made())
        return
    u, a, mask, (T, C) = product.u, product.a, product.mask, out.shape
    drawn = (out, 0, 0, 1.0) if mask is None else (mask.key, product.salt, mask.threshold, mask.scale)
    _add_product[(triton.cdiv(C, TILE["BC"]), triton.cdiv(T, TILE["BT"]))](
        out, u, a, *drawn, T, C, u.shape[2], out.stride(0), u.stride(0), u.stride(1),
        COUNT=len(u), DROP=mask is not None, BR=product.block, **TILE,
    )  # fmt: skip


if triton is not None:
    from lorgnette.model.kernels.dropout import mixed, salted

    @triton.jit
    @no_type_check
    def tile(u, a, row, column, T, C, R, u_stride, BT: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr):
        """[BT, BC] of u·a, in fp32."""
        total = tl.zeros((BT, BC), tl.float32)
        for begin in range(0, R, BR):
            rank = begin + tl.arange(0, BR)
            left = (row < T)[:, None] & (rank < R)[None, :]
            right = (rank < R)[:, None] & (column < C)[None, :]
            total = tl.dot(
                tl.load(u + row[:, None] * u_stride + rank[None, :], mask=left, other=0.0),
                tl.load(a + rank[:, None] * C + column[None, :], mask=right, other=0.0),
                total,
                input_precision="ieee",
            )
        return total

    @triton.jit(do_not_specialize=["salt", "T", "threshold"])
    @no_type_check
    def _add_product(
        out, u, a, key, salt, threshold, scale, T, C, R, out_stride, u_each, u_stride,
        COUNT: tl.constexpr, DROP: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(0) * BC + tl.arange(0, BC)
        row = tl.program_id(1).to(tl.int64) * BT + tl.arange(0, BT)
        there = (row < T)[:, None] & (column < C)[None, :]
        at = out + row[:, None] * out_stride + column[None, :]
        number = (row[:, None] * C + column[None, :]).to(tl.uint32)
        total = tl.load(at, mask=there, other=0.0).to(tl.float32)
        for i in tl.static_range(COUNT):
            made = tile(u + i * u_each, a + i * R * C, row, column, T, C, R, u_stride, BT, BC, BR)
            if DROP:
                bits = mixed(number ^ salted(key, salt + i))
                made = tl.where(bits >= threshold.to(tl.uint32), made * scale, 0.0)
            total += made
        tl.store(at, total.to(out.dtype.element_ty), mask=there)
