"""A frozen matrix with its LoRA factors, forward and backward: one product does both.

Plainly                 y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ
side by side            y = [x | x·(sA)ᵀ] · [W | B]ᵀ + b

[W | B] lies in one matrix and [x | x·(sA)ᵀ] in another, so that the sum happens inside the product, in its fp32
accumulator: no kernel scales, adds or casts, and the result is rounded once. Several projections of one input (query,
key, value; gate, up) are one matrix of theirs stacked, with B in blocks on the diagonal:

          ┌ W_q │ B_q          ┐                 The gradients, for dy of y:
    [W|B] = │ W_k │      B_k     │                   [dx₀ | du] = dy · [W | B]       u = x·(sA)ᵀ
          └ W_v │          B_v ┘                     dx = dx₀ + du·(sA)
                                                     dA = s · duᵀ·x      dBᵢ = dyᵢᵀ·uᵢ

With dropout every projection sees x under a mask of its own (kernels/dropout.py): uᵢ = (maskᵢ·x)·(sAᵢ)ᵀ.
(LoRA: Hu et al. 2021. The factors' masters and gradients are fp32, as PEFT's.)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.kernels.dropout import Drop, Mask, Under, add_dropped, dropped
from lorgnette.kernels.multi_tensor_copy import Move


@dataclass(frozen=True, slots=True)
class Factors:
    """The fp32 masters of the adapted projections, and their gradients. rows: where each one's output lies among the
    stacked ones; R = n·r."""

    rows: tuple[slice, ...]
    a: Float32[Tensor, "R I"]
    b: tuple[Float32[Tensor, "_ r"], ...]
    grad_a: Float32[Tensor, "R I"]
    grad_b: tuple[Float32[Tensor, "_ r"], ...]


class LoraLinear:
    """Stacked projections of one input. n of them are adapted (none: a plain linear map); R = n·r columns are added.

    weight: [O, I + R], bias: [O] or None; salt: a number no other matrix of the model has, for dropout.
    """

    def __init__(self, weight: Float[Tensor, "O IR"], bias: Float[Tensor, " O"] | None, inputs: int, salt: int) -> None:
        self.weight, self.bias, self.inputs, self.salt = weight, bias, inputs, salt
        self.factors: Factors | None = None
        self.scale = 1.0
        self._a = weight.new_empty(weight.shape[1] - inputs, inputs)
        """s·A of every adapted projection, in the weight's dtype."""

    @property
    def width(self) -> int:
        """Columns of the matrix that `forward` takes: I + R."""
        return self.weight.shape[1]

    def drop(self, mask: Mask | None) -> Drop | None:
        """None where nothing is masked."""
        return None if mask is None or self.factors is None else (mask, len(self.factors.b), self.salt)

    def adapt(self, factors: Factors, scale: float) -> list[Move]:
        """Take factors, in the order of their columns. Returns the moves that bring the masters where they are computed
        with: to be made now and whenever they change."""
        self.factors, self.scale = factors, scale
        self.weight[:, self.inputs :].zero_()
        into = [
            Move(b, self.weight[rows, self._columns(i)], 1.0)
            for i, (rows, b) in enumerate(zip(factors.rows, factors.b, strict=True))
        ]
        return [Move(factors.a, self._a, scale), *into]

    def forward(
        self, xu: Float[Tensor, "T IR"], mask: Mask | None, seen: Float[Tensor, "n T I"] | None = None
    ) -> Float[Tensor, "T O"]:
        """y. The first I columns of `xu` hold x; the others receive u. seen: x under every projection's mask, where it
        has been made already."""
        x, u = xu[:, : self.inputs], xu[:, self.inputs :]
        if self.factors is not None and mask is None:
            torch.mm(x, self._a.T, out=u)
        elif self.factors is not None and mask is not None:
            torch.bmm(self._seen(x, mask) if seen is None else seen, self._each_a.mT, out=self._each(u))
        if self.bias is None:
            return xu @ self.weight.T
        return torch.addmm(self.bias, xu, self.weight.T)

    def plain(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """y of the frozen matrix alone."""
        weight = self.weight[:, : self.inputs].T
        return x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)

    def through(self, dy: Float[Tensor, "T O"]) -> Float[Tensor, "T IR"]:
        """[dx₀ | du]."""
        return dy @ self.weight

    def input_grads(self, dxu: Float[Tensor, "T IR"], mask: Mask | None) -> tuple[Float[Tensor, "T I"], Under | None]:
        """dx, in place of dx₀; under dropout dx₀ alone, and what is to be added to it."""
        dx, du = dxu[:, : self.inputs], dxu[:, self.inputs :]
        if self.factors is not None and mask is not None:
            return dx, (torch.bmm(self._each(du), self._each_a), mask, self.salt)
        if self.factors is not None:
            dx.addmm_(du, self._a)
        return dx, None

    def add_input_grad(self, dxu: Float[Tensor, "T IR"], mask: Mask | None) -> Float[Tensor, "T I"]:
        """dx, made in place of dx₀."""
        dx, under = self.input_grads(dxu, mask)
        if under is not None:
            add_dropped(dx, *under)
        return dx

    def add_factor_grads(
        self,
        dy: Float[Tensor, "T O"],
        dxu: Float[Tensor, "T IR"],
        x: Float[Tensor, "T I"],
        u: Float[Tensor, "T R"],
        mask: Mask | None,
        seen: Float[Tensor, "n T I"] | None = None,
    ) -> None:
        """dA and dB, added to the factors' gradients. dxu: as `through` made it (its last R columns are read); seen: as
        in `forward`, x is not read then."""
        if self.factors is None:
            return
        du, grad_a = dxu[:, self.inputs :], self.factors.grad_a
        if mask is None:
            _accumulate(grad_a, du.T, x, self.scale)
        else:
            each = grad_a.view(len(self.factors.b), -1, self.inputs)
            _accumulate(each, self._each(du).mT, self._seen(x, mask) if seen is None else seen, self.scale)
        for rows, part, grad_b in zip(self.factors.rows, self._each(u), self.factors.grad_b, strict=True):
            _accumulate(grad_b, dy[:, rows].T, part, 1.0)

    def _seen(self, x: Float[Tensor, "T I"], mask: Mask) -> Float[Tensor, "n T I"]:
        """x under every projection's mask."""
        assert self.factors is not None
        return dropped(x, len(self.factors.b), mask, self.salt)

    @property
    def _each_a(self) -> Float[Tensor, "n r I"]:
        assert self.factors is not None
        return self._a.view(len(self.factors.b), -1, self.inputs)

    def _each(self, u: Float[Tensor, "T R"]) -> Float[Tensor, "n T r"]:
        """Every projection's columns, as a view."""
        assert self.factors is not None
        n = len(self.factors.b)
        return u.view(len(u), n, u.shape[1] // n).transpose(0, 1)

    def _columns(self, i: int) -> slice:
        assert self.factors is not None
        rank = len(self.factors.a) // len(self.factors.b)
        return slice(self.inputs + i * rank, self.inputs + (i + 1) * rank)


def _accumulate(
    total: Float32[Tensor, "*n m o"], a: Float[Tensor, "*n m k"], b: Float[Tensor, "*n k o"], scale: float
) -> None:
    """total += scale · a·b, added up in fp32."""
    added = torch.addmm if total.ndim == 2 else torch.baddbmm
    if a.is_cuda and a.dtype != total.dtype:
        added(total, a, b, out_dtype=torch.float32, alpha=scale, out=total)
    else:
        added(total, a.float(), b.float(), alpha=scale, out=total)
