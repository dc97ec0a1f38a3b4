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

from lorgnette.kernels.dropout import Dropout, DropoutSpec, MaskedGrads, add_masked_grads, apply_dropout
from lorgnette.kernels.multi_tensor_copy import CopyOp


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """The fp32 masters of the adapted projections, and their gradients. rows: where each one's output lies among the
    stacked ones; R = n·r."""

    out_rows: tuple[slice, ...]
    a: Float32[Tensor, "R I"]
    b: tuple[Float32[Tensor, "_ r"], ...]
    grad_a: Float32[Tensor, "R I"]
    grad_b: tuple[Float32[Tensor, "_ r"], ...]


class LoraLinear:
    """Stacked projections of one input. n of them are adapted (none: a plain linear map); R = n·r columns are added.

    weight: [O, I + R], bias: [O] or None; salt: a number no other matrix of the model has, for dropout.
    """

    def __init__(
        self, weight: Float[Tensor, "O IR"], bias: Float[Tensor, " O"] | None, in_features: int, rng_stream: int
    ) -> None:
        self.weight, self.bias, self.in_features, self.rng_stream = weight, bias, in_features, rng_stream
        self.factors: LoraFactors | None = None
        self.scaling = 1.0
        self._a = weight.new_empty(weight.shape[1] - in_features, in_features)
        """s·A of every adapted projection, in the weight's dtype."""

    @property
    def ext_features(self) -> int:
        """Columns of the matrix that `forward` takes: I + R."""
        return self.weight.shape[1]

    def build_dropout_spec(self, dropout: Dropout | None) -> DropoutSpec | None:
        """None where nothing is masked."""
        return None if dropout is None or self.factors is None else (dropout, len(self.factors.b), self.rng_stream)

    def attach_adapter(self, factors: LoraFactors, scaling: float) -> list[CopyOp]:
        """Take factors, in the order of their columns. Returns the moves that bring the masters where they are computed
        with: to be made now and whenever they change."""
        self.factors, self.scaling = factors, scaling
        self.weight[:, self.in_features :].zero_()
        into = [
            CopyOp(b, self.weight[rows, self._get_columns(i)], 1.0)
            for i, (rows, b) in enumerate(zip(factors.out_rows, factors.b, strict=True))
        ]
        return [CopyOp(factors.a, self._a, scaling), *into]

    def forward(
        self, x_ext: Float[Tensor, "T IR"], dropout: Dropout | None, dropped: Float[Tensor, "n T I"] | None = None
    ) -> Float[Tensor, "T O"]:
        """y. The first I columns of `xu` hold x; the others receive u. seen: x under every projection's mask, where it
        has been made already."""
        x, u = x_ext[:, : self.in_features], x_ext[:, self.in_features :]
        if self.factors is not None and dropout is None:
            torch.mm(x, self._a.T, out=u)
        elif self.factors is not None and dropout is not None:
            torch.bmm(
                self._apply_dropout(x, dropout) if dropped is None else dropped,
                self._stacked_a.mT,
                out=self._split_projections(u),
            )
        if self.bias is None:
            return x_ext @ self.weight.T
        return torch.addmm(self.bias, x_ext, self.weight.T)

    def base_forward(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """y of the frozen matrix alone."""
        weight = self.weight[:, : self.in_features].T
        return x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)

    def backward_input(self, dy: Float[Tensor, "T O"]) -> Float[Tensor, "T IR"]:
        """[dx₀ | du]."""
        return dy @ self.weight

    def add_lora_input_grad(
        self, dx_ext: Float[Tensor, "T IR"], dropout: Dropout | None
    ) -> tuple[Float[Tensor, "T I"], MaskedGrads | None]:
        """dx, in place of dx₀; under dropout dx₀ alone, and what is to be added to it."""
        dx, du = dx_ext[:, : self.in_features], dx_ext[:, self.in_features :]
        if self.factors is not None and dropout is not None:
            return dx, (torch.bmm(self._split_projections(du), self._stacked_a), dropout, self.rng_stream)
        if self.factors is not None:
            dx.addmm_(du, self._a)
        return dx, None

    def complete_input_grad(self, dx_ext: Float[Tensor, "T IR"], dropout: Dropout | None) -> Float[Tensor, "T I"]:
        """dx, made in place of dx₀."""
        dx, under = self.add_lora_input_grad(dx_ext, dropout)
        if under is not None:
            add_masked_grads(dx, *under)
        return dx

    def accumulate_lora_grads(
        self,
        dy: Float[Tensor, "T O"],
        dx_ext: Float[Tensor, "T IR"],
        x: Float[Tensor, "T I"],
        u: Float[Tensor, "T R"],
        dropout: Dropout | None,
        dropped: Float[Tensor, "n T I"] | None = None,
    ) -> None:
        """dA and dB, added to the factors' gradients. dxu: as `through` made it (its last R columns are read); seen: as
        in `forward`, x is not read then."""
        if self.factors is None:
            return
        du, grad_a = dx_ext[:, self.in_features :], self.factors.grad_a
        if dropout is None:
            _accumulate_matmul(grad_a, du.T, x, self.scaling)
        else:
            each = grad_a.view(len(self.factors.b), -1, self.in_features)
            _accumulate_matmul(
                each,
                self._split_projections(du).mT,
                self._apply_dropout(x, dropout) if dropped is None else dropped,
                self.scaling,
            )
        for rows, part, grad_b in zip(
            self.factors.out_rows, self._split_projections(u), self.factors.grad_b, strict=True
        ):
            _accumulate_matmul(grad_b, dy[:, rows].T, part, 1.0)

    def _apply_dropout(self, x: Float[Tensor, "T I"], dropout: Dropout) -> Float[Tensor, "n T I"]:
        """x under every projection's mask."""
        assert self.factors is not None
        return apply_dropout(x, len(self.factors.b), dropout, self.rng_stream)

    @property
    def _stacked_a(self) -> Float[Tensor, "n r I"]:
        assert self.factors is not None
        return self._a.view(len(self.factors.b), -1, self.in_features)

    def _split_projections(self, u: Float[Tensor, "T R"]) -> Float[Tensor, "n T r"]:
        """Every projection's columns, as a view."""
        assert self.factors is not None
        n = len(self.factors.b)
        return u.view(len(u), n, u.shape[1] // n).transpose(0, 1)

    def _get_columns(self, i: int) -> slice:
        assert self.factors is not None
        rank = len(self.factors.a) // len(self.factors.b)
        return slice(self.in_features + i * rank, self.in_features + (i + 1) * rank)


def _accumulate_matmul(
    total: Float32[Tensor, "*n m o"], a: Float[Tensor, "*n m k"], b: Float[Tensor, "*n k o"], scale: float
) -> None:
    """total += scale · a·b, added up in fp32."""
    added = torch.addmm if total.ndim == 2 else torch.baddbmm
    if a.is_cuda and a.dtype != total.dtype:
        added(total, a, b, out_dtype=torch.float32, alpha=scale, out=total)
    else:
        added(total, a.float(), b.float(), alpha=scale, out=total)
