"""A frozen matrix and its LoRA factors in one matrix product, forward and backward.

LoRA (Hu et al. 2021)    y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ
as one product           y = x_ext · [W | B]ᵀ + b          x_ext = [x | u]          u = x·(sA)ᵀ

The sum of both terms happens inside the product, in its fp32 accumulator: no kernel scales, adds or casts, and the
result is rounded once. Projections of one input (query, key, value; gate, up) are stacked, with B in diagonal blocks:

            ┌ W_q │ B_q          ┐               The gradients, for dy of y:
    [W|B] = │ W_k │      B_k     │                   dx_ext = [dx_base | du] = dy · [W | B]
            └ W_v │          B_v ┘                   dx = dx_base + du·(sA)     dA = s · duᵀ·x     dBᵢ = dyᵢᵀ·uᵢ

With dropout every projection has its own mask (kernels/dropout.py): uᵢ = (maskᵢ·x)·(sAᵢ)ᵀ.
The factors' masters and gradients are fp32, as PEFT's.

W may be in NF4 (kernels/nf4.py). [W | B] is then written into memory that all layers share, right before each product.
Or this rank has some rows of [W | B] alone, and gathers the others (models/sharded_weight.py).

    T tokens, I inputs, O outputs of all projections, n adapted projections of rank r, R = n·r
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from lorgnette.kernels.dropout import Dropout, DropoutSpec, MaskedGrads, apply_dropout
from lorgnette.kernels.dropped_products import add_dropped_products
from lorgnette.kernels.multi_tensor_copy import CopyOp
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4
from lorgnette.kernels.swiglu import swiglu, swiglu_backward, swiglu_project
from lorgnette.models.sharded_weight import ShardedWeight


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """fp32 masters and gradients of the adapted projections. out_rows: each one's rows of the stacked matrix."""

    out_rows: tuple[slice, ...]
    a: Float32[Tensor, "R I"]
    b: tuple[Float32[Tensor, "_ r"], ...]
    grad_a: Float32[Tensor, "R I"]
    grad_b: tuple[Float32[Tensor, "_ r"], ...]


@dataclass(frozen=True, slots=True)
class FrozenFactors:
    """One projection's factors that are not trained, in any dtype. out_rows: its rows of the stacked matrix."""

    out_rows: slice
    scaled_a: Float[Tensor, "r I"]
    b: Float[Tensor, "_ r"]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """[W | B] with W in NF4.

    parts: W's projections, top to bottom; one that a checkpoint leaves out of its quantization is a plain matrix.
    scratch: memory for [W | B], which all layers share.
    """

    parts: tuple[Nf4Matrix | Float[Tensor, "_ I"], ...]
    b: Float[Tensor, "O R"]
    scratch: Float[Tensor, " _"]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I + R)."""
        return len(self.b), self.parts[0].shape[1] + self.b.shape[1]

    def dequantize(self) -> Float[Tensor, "O IR"]:
        """Write [W | B] into `scratch`. Only the stream that does so may read it."""
        weight, in_features = self.scratch[: self.shape[0] * self.shape[1]].view(self.shape), self.parts[0].shape[1]
        for part, rows in zip(self.parts, torch.split(weight, [part.shape[0] for part in self.parts]), strict=True):
            if isinstance(part, Nf4Matrix):
                dequantize_nf4(part, rows[:, :in_features])
            else:
                rows[:, :in_features].copy_(part)
        weight[:, in_features:].copy_(self.b)
        return weight


class LoraLinear:
    """Stacked projections of one input. Without adapted projections it is a plain linear layer.

    weight: [O, I + R], [W | B]. bias: [O] or None. rng_stream: the first projection's number among all dropout masks.
    """

    def __init__(
        self,
        weight: Float[Tensor, "O IR"] | QuantizedWeight | ShardedWeight,
        bias: Float[Tensor, " O"] | None,
        in_features: int,
        rng_stream: int,
        scaled_a: Float[Tensor, "R I"] | None = None,
    ) -> None:
        """scaled_a: memory for s·A of every adapted projection, in the weight's dtype; None: its own."""
        self.weight, self.bias, self.in_features, self.rng_stream = weight, bias, in_features, rng_stream
        self.factors: LoraFactors | None = None
        self.num_adapted = 0
        """Projections whose factors are in the columns. `factors` has the masters of those that are trained."""
        self.scaling = 1.0
        kept = weight.own_rows if isinstance(weight, ShardedWeight) else weight
        self._b = kept.b if isinstance(kept, QuantizedWeight) else kept[:, in_features:]
        self._a = self._b.new_empty(self._b.shape[1], in_features) if scaled_a is None else scaled_a
        """s·A of every adapted projection, in the weight's dtype."""

    @property
    def ext_features(self) -> int:
        """Columns of x_ext: I + R."""
        return self.weight.shape[1]

    def load_weight(self) -> Float[Tensor, "O IR"]:
        """[W | B]; of NF4 in memory that the next call for any layer overwrites, of shards in that of the layer after
        the next."""
        if isinstance(self.weight, QuantizedWeight):
            return self.weight.dequantize()
        return self.weight.gather() if isinstance(self.weight, ShardedWeight) else self.weight

    def build_dropout_spec(self, dropout: Dropout | None) -> DropoutSpec | None:
        """The masks of this input; None if there are none."""
        return None if dropout is None or self.factors is None else (dropout, len(self.factors.b), self.rng_stream)

    def attach_adapter(self, factors: LoraFactors, scaling: float) -> list[CopyOp]:
        """Use these factors, given in the order of their columns.

        Returns the copies from the fp32 masters to the weight's dtype. The caller runs them now and after every update.
        Of B to the rows that this rank keeps.
        """
        self.factors, self.num_adapted, self.scaling = factors, len(factors.b), scaling
        columns = self._b.zero_().chunk(len(factors.b), 1)
        kept = self.weight.rows if isinstance(self.weight, ShardedWeight) else range(len(self._b))
        copies = [CopyOp(factors.a, self._a, scaling)]
        for b, column, rows in zip(factors.b, columns, factors.out_rows, strict=True):
            start, end = max(rows.start, kept.start), min(rows.stop, kept.stop)
            if start < end:
                source = b[start - rows.start : end - rows.start]
                copies.append(CopyOp(source, column[start - kept.start : end - kept.start], 1.0))
        return copies

    def write_factors(self, factors: Sequence[FrozenFactors]) -> None:
        """Compute with these factors, without masters and gradients. Given in the order of their columns.

        The weight is whole on this rank.
        """
        self.factors, self.num_adapted = None, len(factors)
        columns, a_rows = (part.chunk(len(factors), dim) for part, dim in ((self._b.zero_(), 1), (self._a, 0)))
        for column, a, given in zip(columns, a_rows, factors, strict=True):
            a.copy_(given.scaled_a)
            column[given.out_rows].copy_(given.b)

    def forward(
        self,
        x_ext: Float[Tensor, "T IR"],
        dropout: Dropout | None = None,
        dropped: Float[Tensor, "n T I"] | None = None,
        *,
        has_u: bool = False,
        use_adapter: bool = True,
        rank_mask: Bool[Tensor, "#T r"] | None = None,
    ) -> Float[Tensor, "T O"]:
        """y. The first I columns of `x_ext` hold x; the others receive u, unless they have it.

        dropped: x under every projection's mask, if it exists already. use_adapter: False gives the base model's y.
        rank_mask: without dropout; True for the ranks that a token does not use, if several adapters lie side by side.
        """
        x, u, weight = x_ext[:, : self.in_features], x_ext[:, self.in_features :], self.load_weight()
        if not use_adapter:
            x_ext, weight = x, weight[:, : self.in_features]
        elif not has_u:
            self._project(x, u, dropout, dropped, rank_mask)
        return x_ext @ weight.T if self.bias is None else torch.addmm(self.bias, x_ext, weight.T)

    def _project(
        self,
        x: Float[Tensor, "T I"],
        u: Float[Tensor, "T R"],
        dropout: Dropout | None,
        dropped: Float[Tensor, "n T I"] | None,
        rank_mask: Bool[Tensor, "#T r"] | None,
    ) -> None:
        """u of every adapted projection, if there are any. The others are as in `forward`."""
        if self.num_adapted and dropout is None:
            torch.mm(x, self._a.T, out=u)
            if rank_mask is not None:
                self._split_projections(u).masked_fill_(rank_mask, 0)  # 0 · inf would be no number
        elif self.factors is not None and dropout is not None:
            dropped = self._apply_dropout(x, dropout) if dropped is None else dropped
            torch.bmm(dropped, self._stacked_a.mT, out=self._split_projections(u))

    def forward_swiglu(
        self,
        gate_up: Float[Tensor, "T II"],
        x_ext: Float[Tensor, "T IR"],
        dropout: Dropout | None = None,
        u_copy: Float[Tensor, "T R"] | None = None,
        *,
        use_adapter: bool = True,
        rank_mask: Bool[Tensor, "#T r"] | None = None,
    ) -> Float[Tensor, "T O"]:
        """`forward` of SwiGLU's product, which is written into `x_ext`, for one projection. u_copy: receives u too."""
        x, u = x_ext[:, : self.in_features], x_ext[:, self.in_features :]
        if use_adapter and self.factors is not None and dropout is not None:
            swiglu_project(gate_up, x, self._stacked_a, dropout, self.rng_stream, u, u_copy)
            return self.forward(x_ext, dropout, has_u=True)
        swiglu(gate_up, x)
        y = self.forward(x_ext, use_adapter=use_adapter, rank_mask=rank_mask)
        if u_copy is not None:
            u_copy.copy_(u)
        return y

    def backward_input(self, dy: Float[Tensor, "T O"]) -> Float[Tensor, "T IR"]:
        """dx_ext = [dx_base | du]."""
        return dy @ self.load_weight()

    def add_lora_input_grad(self, dx_ext: Float[Tensor, "T IR"], dropout: Dropout | None) -> Float[Tensor, "T I"]:
        """dx, computed in place of dx_base."""
        dx, du = dx_ext[:, : self.in_features], dx_ext[:, self.in_features :]
        if self.factors is not None and dropout is not None:
            add_dropped_products(dx, du, self._stacked_a, dropout, self.rng_stream)
        elif self.factors is not None:
            dx.addmm_(du, self._a)
        return dx

    def backward_swiglu(
        self,
        dx_ext: Float[Tensor, "T IR"],
        gate_up: Float[Tensor, "T II"],
        x: Float[Tensor, "T I"],
        dropout: Dropout | None,
    ) -> Float[Tensor, "n T I"] | None:
        """`add_lora_input_grad`, then SwiGLU's gradient in place of `gate_up`. Writes SwiGLU's product into `x`.

        With dropout the product is under its mask; then returns it as `dropped` of `accumulate_lora_grads`.
        """
        if self.factors is None or dropout is None:
            swiglu_backward(gate_up, self.add_lora_input_grad(dx_ext, None), x)
            return None
        # SwiGLU's kernel adds these: it reads dx anyway, and more than it multiplies in the same time.
        dx, du = dx_ext[:, : self.in_features], dx_ext[:, self.in_features :]
        masked_grads: MaskedGrads = (torch.bmm(self._split_projections(du), self._stacked_a), dropout, self.rng_stream)
        swiglu_backward(gate_up, dx, x, masked_grads)
        return x[None]

    def accumulate_lora_grads(
        self,
        dy: Float[Tensor, "T O"],
        dx_ext: Float[Tensor, "T IR"],
        x: Float[Tensor, "T I"],
        u: Float[Tensor, "T R"],
        dropout: Dropout | None,
        dropped: Float[Tensor, "n T I"] | None = None,
    ) -> None:
        """Add dA and dB to the factors' gradients.

        dx_ext: from `backward_input`; only du, its last R columns, is read. dropped: as in `forward`; x is unused then.
        """
        if self.factors is None:
            return
        du, grad_a = dx_ext[:, self.in_features :], self.factors.grad_a
        if dropout is None:
            _accumulate_matmul(grad_a, du.T, x, self.scaling)
        else:
            stacked_grad_a = grad_a.view(len(self.factors.b), -1, self.in_features)
            dropped = self._apply_dropout(x, dropout) if dropped is None else dropped
            _accumulate_matmul(stacked_grad_a, self._split_projections(du).mT, dropped, self.scaling)
        parts = zip(self.factors.out_rows, self._split_projections(u), self.factors.grad_b, strict=True)
        for rows, u_i, grad_b in parts:
            _accumulate_matmul(grad_b, dy[:, rows].T, u_i, 1.0)

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
        return u.view(len(u), self.num_adapted, u.shape[1] // self.num_adapted).transpose(0, 1)


def _accumulate_matmul(
    total: Float32[Tensor, "*n m o"], a: Float[Tensor, "*n m k"], b: Float[Tensor, "*n k o"], scale: float
) -> None:
    """total += scale · a·b, accumulated in fp32."""
    addmm = torch.addmm if total.ndim == 2 else torch.baddbmm
    if a.is_cuda and a.dtype != total.dtype:
        addmm(total, a, b, out_dtype=torch.float32, alpha=scale, out=total)
    else:
        addmm(total, a.float(), b.float(), alpha=scale, out=total)
