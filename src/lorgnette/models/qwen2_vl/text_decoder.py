"""The language model's decoder, forward and backward, over packed rows: the fast engine's arithmetic.

T rows, C hidden, H heads, K key heads, D head width, F MLP width, L layers, V tokens, R label rows; u: the adapter's
columns beside an input (lora_linear.py). One layer:

    x ── norm ──[xn|u]── qkv ── rotary ── attention ──[a|u]── o ──┐
    └───────────────────────── + ─────────────────────────────────┴─ x₁ ── norm ──[xn|u]── gate·up ──[m|u]── down ─┐
                                                               └──────────────────── + ────────────────────────────┴─

The backward pass is written out: it keeps what it needs and no more (about 50 kB a row and layer at 2B's shapes), and
adds the factors' gradients where the optimizer wants them: beside the rest, which does not wait for them. Only the
adapter is trained, so no other gradient is made.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from lorgnette.kernels.attention import attend, attend_backward
from lorgnette.kernels.attention_plan import Sight
from lorgnette.kernels.cross_entropy import cross_entropy_
from lorgnette.kernels.dropout import Mask
from lorgnette.kernels.gather_sum import Copies, gather_sum
from lorgnette.kernels.rms_norm import add_norm, norm_backward
from lorgnette.kernels.rotary import angles, axes_of, frequencies, rotate
from lorgnette.kernels.swiglu import swiglu, swiglu_backward
from lorgnette.models.lora_linear import LoraLinear
from lorgnette.models.qwen2_vl.config import TextShape
from lorgnette.side_stream import Beside

LABELS_AT_ONCE = 2048
"""Rows of logits that exist at one time: 2048 × 151,936 bf16 are 0.6 GB."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A packed batch on the device.

    positions: [3, T]; sight: what every row sees; last_sight: the same of the rows that anything is predicted from: the
    last layer makes keys and values of every row, and the rest for these M alone.
    label_rows: [R] places among those, and the copies of each; targets, weights: [R].
    """

    positions: Int[Tensor, "3 T"]
    sight: Sight
    last_sight: Sight
    label_rows: Int32[Tensor, " R"]
    label_copies: Copies
    targets: Int32[Tensor, " R"]
    weights: Float32[Tensor, " R"]


@dataclass(slots=True)
class Layer:
    norm1: Float[Tensor, " C"]
    qkv: LoraLinear
    o: LoraLinear
    norm2: Float[Tensor, " C"]
    gate_up: LoraLinear
    down: LoraLinear

    @property
    def linears(self) -> tuple[LoraLinear, LoraLinear, LoraLinear, LoraLinear]:
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(slots=True)
class Saved:
    """A layer's forward pass, as its backward pass wants it: M rows from the attention on, all T but in the last
    layer. What the norms gave is made again; of the adapter's inputs their few columns u are kept."""

    x0: Float[Tensor, "T C"]
    scale0: Float32[Tensor, " T"]
    u_qkv: Float[Tensor, "T _"]
    qkv: Float[Tensor, "T _"]
    au: Float[Tensor, "M _"]
    lse: Float32[Tensor, "M H"] | None
    x1: Float[Tensor, "M C"]
    scale1: Float32[Tensor, " M"]
    u_gate_up: Float[Tensor, "M _"]
    gate_up: Float[Tensor, "M _"]
    u_down: Float[Tensor, "M _"]


@dataclass(slots=True)
class Pass:
    """A forward pass on its way back. layers: what each kept, or its input alone where it is to be made again; x: the
    last layer's hidden states, of `rows.last_sight`'s."""

    rows: Rows
    mask: Mask | None
    turns: tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]
    layers: list[Saved | tuple[Tensor, Tensor | None]]
    x: Float[Tensor, "M C"]


class Decoder:
    """The decoder's frozen weights with an adapter in them."""

    def __init__(
        self,
        shape: TextShape,
        embedding: Float[Tensor, "V C"],
        layers: Sequence[Layer],
        norm: Float[Tensor, " C"],
        head: Float[Tensor, "V C"],
    ) -> None:
        self.shape, self.embedding, self.layers, self.norm, self.head = shape, embedding, layers, norm, head
        device = embedding.device
        self._axes = axes_of(shape.mrope_section, device)
        self._frequency = frequencies(shape.head_dim, shape.rope_theta, device)
        self._beside = Beside(device)
        self._heads = (shape.heads, shape.kv_heads)

    def turns(self, positions: Int[Tensor, "3 T"]) -> tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]:
        """Cosine and sine of every row's turn, for every layer."""
        return angles(positions, self._axes, self._frequency)

    @property
    def linears(self) -> Iterator[LoraLinear]:
        return (linear for layer in self.layers for linear in layer.linears)

    def forward(self, x: Float[Tensor, "T C"], rows: Rows, mask: Mask | None, *, again: int = 0) -> Pass:
        """Hidden states before the last norm. again: so many layers, from the first, keep their input alone and are
        run a second time in `backward`."""
        passed = Pass(rows, mask, self.turns(rows.positions), [], x)
        delta: Tensor | None = None
        for i in range(len(self.layers)):
            out, saved = self._layer(i, x, delta, passed)
            passed.layers.append((x, delta) if i < again else saved)
            x, delta = saved.x1, out
        assert delta is not None
        passed.x = x + delta
        return passed

    def losses(self, passed: Pass) -> Float32[Tensor, " R"]:
        """Cross-entropy of every label."""
        return torch.cat([losses for losses, _ in self._head(passed)])

    def losses_and_gradient(self, passed: Pass) -> tuple[Float32[Tensor, " R"], Float[Tensor, "M C"]]:
        """Cross-entropy of every label, and the gradient of Σ weight · cross-entropy by the hidden states."""
        parts = list(self._head(passed))
        made = torch.cat([grad for _, grad in parts])
        dx = gather_sum(made, passed.rows.label_copies, torch.empty_like(passed.x))
        return torch.cat([losses for losses, _ in parts]), dx

    def backward(self, passed: Pass, dx: Float[Tensor, "M C"]) -> None:
        """Add the factors' gradients. The pass is used up."""
        try:
            for i in reversed(range(len(self.layers))):
                saved = passed.layers.pop()
                if isinstance(saved, tuple):
                    _, saved = self._layer(i, *saved, passed)
                dx = self._layer_backward(i, saved, dx, passed)
        finally:  # where memory does not hold a pass, no recording ends and no tensor is freed with work under way
            self._beside.join()

    def _layer(
        self, number: int, x: Float[Tensor, "T C"], delta: Float[Tensor, "T C"] | None, passed: Pass
    ) -> tuple[Float[Tensor, "M C"], Saved]:
        """What the layer adds to x₁, and what it keeps."""
        layer, shape, mask = self.layers[number], self.shape, passed.mask
        T, C = x.shape
        xu = x.new_empty(T, layer.qkv.width)
        x0, scale0, seen = add_norm(x, delta, layer.norm1, shape.eps, xu[:, :C], layer.qkv.drop(mask))
        qkv = layer.qkv.forward(xu, mask, seen)
        u_qkv = xu[:, C:].clone()
        rotate(qkv, *passed.turns, sum(self._heads))
        sight = self._sight(number, passed.rows)
        M = len(sight.rows)
        au = x.new_empty(M, layer.o.width)
        lse = attend(qkv, sight, self._heads, au[:, : layer.o.inputs])
        added = layer.o.forward(au, mask)
        xu = x.new_empty(M, layer.gate_up.width)
        past = x0.index_select(0, sight.rows) if self._last(number) else x0
        x1, scale1, seen = add_norm(past, added, layer.norm2, shape.eps, xu[:, :C], layer.gate_up.drop(mask))
        gate_up = layer.gate_up.forward(xu, mask, seen)
        u_gate_up = xu[:, C:].clone()
        mu = x.new_empty(M, layer.down.width)
        seen = swiglu(gate_up, mu[:, : layer.down.inputs], layer.down.drop(mask))
        out = layer.down.forward(mu, mask, seen)
        u_down = mu[:, layer.down.inputs :].clone()
        return out, Saved(x0, scale0, u_qkv, qkv, au, lse, x1, scale1, u_gate_up, gate_up, u_down)

    def _layer_backward(
        self, number: int, saved: Saved, dx: Float[Tensor, "M C"], passed: Pass
    ) -> Float[Tensor, "T C"]:
        """The gradient by the layer's input from that by its output."""
        layer, mask = self.layers[number], passed.mask
        dx, gate_up_grads = self._mlp_backward(layer, saved, dx, mask)
        dau = layer.o.through(dx)
        o_grads = partial(layer.o.add_factor_grads, dx, dau, *_split(saved.au, layer.o.inputs), mask)
        self._beside(gate_up_grads, o_grads)
        dqkv = self._attention_backward(number, saved, layer.o.add_input_grad(dau, mask), passed)
        dxu = layer.qkv.through(dqkv)
        if self._last(number):
            dx = torch.zeros_like(saved.x0).index_copy_(0, passed.rows.last_sight.rows.long(), dx)
        through, under = layer.qkv.input_grads(dxu, mask)
        dx, xn = norm_backward(through, saved.x0, saved.scale0, layer.norm1, dx, under)
        self._beside(partial(layer.qkv.add_factor_grads, dqkv, dxu, xn, saved.u_qkv, mask))
        return dx

    def _mlp_backward(
        self, layer: Layer, saved: Saved, dx: Float[Tensor, "M C"], mask: Mask | None
    ) -> tuple[Float[Tensor, "M C"], Callable[[], None]]:
        """The gradient by x₁, and what adds the gradients of gate's and up's factors. In place of what was saved of
        gate and up."""
        dmu = layer.down.through(dx)
        m = torch.empty_like(saved.gate_up[:, : layer.down.inputs])
        dm, under = layer.down.input_grads(dmu, mask)
        dgate_up = swiglu_backward(saved.gate_up, dm, m, under)
        seen = None if under is None else m[None]
        self._beside(partial(layer.down.add_factor_grads, dx, dmu, m, saved.u_down, mask, seen))
        dxu = layer.gate_up.through(dgate_up)
        through, under = layer.gate_up.input_grads(dxu, mask)
        dx, xn = norm_backward(through, saved.x1, saved.scale1, layer.norm2, dx, under)
        return dx, partial(layer.gate_up.add_factor_grads, dgate_up, dxu, xn, saved.u_gate_up, mask)

    def _attention_backward(
        self, number: int, saved: Saved, grad: Float[Tensor, "M _"], passed: Pass
    ) -> Float[Tensor, "T _"]:
        """The gradient of the projections' output from that of the attended values."""
        inputs, sight = self.layers[number].o.inputs, self._sight(number, passed.rows)
        dqkv = attend_backward(grad, saved.qkv, saved.au[:, :inputs], saved.lse, sight, self._heads)
        rotate(dqkv, *passed.turns, sum(self._heads), back=True)
        return dqkv

    def _last(self, number: int) -> bool:
        return number == len(self.layers) - 1

    def _sight(self, number: int, rows: Rows) -> Sight:
        return rows.last_sight if self._last(number) else rows.sight

    def _head(self, passed: Pass) -> Iterable[tuple[Float32[Tensor, " r"], Float[Tensor, "r C"]]]:
        """Losses and their gradient by the hidden state, some labels at a time."""
        rows = passed.rows
        for at in range(0, len(rows.label_rows), LABELS_AT_ONCE):
            part = slice(at, at + LABELS_AT_ONCE)
            x = passed.x.index_select(0, rows.label_rows[part])
            normed = torch.empty_like(x)
            _, scale, _ = add_norm(x, None, self.norm, self.shape.eps, normed)
            logits = normed @ self.head.T
            losses = cross_entropy_(logits, rows.targets[part], rows.weights[part])
            yield losses, norm_backward(logits @ self.head, x, scale, self.norm)[0]


def _split(matrix: Float[Tensor, "T _"], inputs: int) -> tuple[Float[Tensor, "T _"], Float[Tensor, "T _"]]:
    return matrix[:, :inputs], matrix[:, inputs:]
