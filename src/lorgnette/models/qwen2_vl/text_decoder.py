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

from lorgnette.kernels.attention import attention_backward, attention_forward
from lorgnette.kernels.attention_plan import AttentionPlan
from lorgnette.kernels.cross_entropy import cross_entropy_
from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.gather_sum import GatherSegments, gather_sum
from lorgnette.kernels.rms_norm import add_rms_norm, rms_norm_backward
from lorgnette.kernels.rotary import apply_rotary, compute_cos_sin, compute_inv_freq, expand_mrope_section
from lorgnette.kernels.swiglu import swiglu, swiglu_backward
from lorgnette.models.lora_linear import LoraLinear
from lorgnette.models.qwen2_vl.config import TextConfig
from lorgnette.side_stream import SideStream

LABELS_PER_CHUNK = 2048
"""Rows of logits that exist at one time: 2048 × 151,936 bf16 are 0.6 GB."""


@dataclass(frozen=True, slots=True)
class DecoderInputs:
    """A packed batch on the device.

    positions: [3, T]; sight: what every row sees; last_sight: the same of the rows that anything is predicted from: the
    last layer makes keys and values of every row, and the rest for these M alone.
    label_rows: [R] places among those, and the copies of each; targets, weights: [R].
    """

    position_ids: Int[Tensor, "3 T"]
    attention_plan: AttentionPlan
    last_attention_plan: AttentionPlan
    label_indices: Int32[Tensor, " R"]
    label_segments: GatherSegments
    targets: Int32[Tensor, " R"]
    label_weights: Float32[Tensor, " R"]


@dataclass(slots=True)
class DecoderLayer:
    input_norm: Float[Tensor, " C"]
    qkv_proj: LoraLinear
    o_proj: LoraLinear
    post_attention_norm: Float[Tensor, " C"]
    gate_up_proj: LoraLinear
    down_proj: LoraLinear

    @property
    def linears(self) -> tuple[LoraLinear, LoraLinear, LoraLinear, LoraLinear]:
        return self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj


@dataclass(slots=True)
class LayerActivations:
    """A layer's forward pass, as its backward pass wants it: M rows from the attention on, all T but in the last
    layer. What the norms gave is made again; of the adapter's inputs their few columns u are kept."""

    x0: Float[Tensor, "T C"]
    rstd0: Float32[Tensor, " T"]
    u_qkv: Float[Tensor, "T _"]
    qkv: Float[Tensor, "T _"]
    attn_ext: Float[Tensor, "M _"]
    lse: Float32[Tensor, "M H"] | None
    x1: Float[Tensor, "M C"]
    rstd1: Float32[Tensor, " M"]
    u_gate_up: Float[Tensor, "M _"]
    gate_up: Float[Tensor, "M _"]
    u_down: Float[Tensor, "M _"]


@dataclass(slots=True)
class ForwardContext:
    """A forward pass on its way back. layers: what each kept, or its input alone where it is to be made again; x: the
    last layer's hidden states, of `rows.last_sight`'s."""

    inputs: DecoderInputs
    dropout: Dropout | None
    cos_sin: tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]
    activations: list[LayerActivations | tuple[Tensor, Tensor | None]]
    hidden_states: Float[Tensor, "M C"]


class Decoder:
    """The decoder's frozen weights with an adapter in them."""

    def __init__(
        self,
        config: TextConfig,
        embed_tokens: Float[Tensor, "V C"],
        layers: Sequence[DecoderLayer],
        norm: Float[Tensor, " C"],
        lm_head: Float[Tensor, "V C"],
    ) -> None:
        self.config, self.embed_tokens, self.layers, self.norm, self.lm_head = (
            config,
            embed_tokens,
            layers,
            norm,
            lm_head,
        )
        device = embed_tokens.device
        self._mrope_axes = expand_mrope_section(config.mrope_section, device)
        self._inv_freq = compute_inv_freq(config.head_dim, config.rope_theta, device)
        self._side_stream = SideStream(device)
        self._num_heads = (config.num_heads, config.num_kv_heads)

    def compute_cos_sin(
        self, position_ids: Int[Tensor, "3 T"]
    ) -> tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]:
        """Cosine and sine of every row's turn, for every layer."""
        return compute_cos_sin(position_ids, self._mrope_axes, self._inv_freq)

    @property
    def linears(self) -> Iterator[LoraLinear]:
        return (linear for layer in self.layers for linear in layer.linears)

    def forward(
        self, x: Float[Tensor, "T C"], inputs: DecoderInputs, dropout: Dropout | None, *, recompute_layers: int = 0
    ) -> ForwardContext:
        """Hidden states before the last norm. again: so many layers, from the first, keep their input alone and are
        run a second time in `backward`."""
        passed = ForwardContext(inputs, dropout, self.compute_cos_sin(inputs.position_ids), [], x)
        delta: Tensor | None = None
        for i in range(len(self.layers)):
            out, saved = self._forward_layer(i, x, delta, passed)
            passed.activations.append((x, delta) if i < recompute_layers else saved)
            x, delta = saved.x1, out
        assert delta is not None
        passed.hidden_states = x + delta
        return passed

    def compute_losses(self, context: ForwardContext) -> Float32[Tensor, " R"]:
        """Cross-entropy of every label."""
        return torch.cat([losses for losses, _ in self._compute_loss_chunks(context)])

    def compute_losses_and_grad(self, context: ForwardContext) -> tuple[Float32[Tensor, " R"], Float[Tensor, "M C"]]:
        """Cross-entropy of every label, and the gradient of Σ weight · cross-entropy by the hidden states."""
        parts = list(self._compute_loss_chunks(context))
        made = torch.cat([grad for _, grad in parts])
        dx = gather_sum(made, context.inputs.label_segments, torch.empty_like(context.hidden_states))
        return torch.cat([losses for losses, _ in parts]), dx

    def backward(self, context: ForwardContext, dx: Float[Tensor, "M C"]) -> None:
        """Add the factors' gradients. The pass is used up."""
        try:
            for i in reversed(range(len(self.layers))):
                saved = context.activations.pop()
                if isinstance(saved, tuple):
                    _, saved = self._forward_layer(i, *saved, context)
                dx = self._backward_layer(i, saved, dx, context)
        finally:  # where memory does not hold a pass, no recording ends and no tensor is freed with work under way
            self._side_stream.join()

    def _forward_layer(
        self, number: int, x: Float[Tensor, "T C"], delta: Float[Tensor, "T C"] | None, context: ForwardContext
    ) -> tuple[Float[Tensor, "M C"], LayerActivations]:
        """What the layer adds to x₁, and what it keeps."""
        layer, shape, mask = self.layers[number], self.config, context.dropout
        T, C = x.shape
        xu = x.new_empty(T, layer.qkv_proj.ext_features)
        x0, scale0, seen = add_rms_norm(
            x, delta, layer.input_norm, shape.rms_norm_eps, xu[:, :C], layer.qkv_proj.build_dropout_spec(mask)
        )
        qkv = layer.qkv_proj.forward(xu, mask, seen)
        u_qkv = xu[:, C:].clone()
        apply_rotary(qkv, *context.cos_sin, sum(self._num_heads))
        sight = self._select_attention_plan(number, context.inputs)
        M = len(sight.query_indices)
        au = x.new_empty(M, layer.o_proj.ext_features)
        lse = attention_forward(qkv, sight, self._num_heads, au[:, : layer.o_proj.in_features])
        added = layer.o_proj.forward(au, mask)
        xu = x.new_empty(M, layer.gate_up_proj.ext_features)
        past = x0.index_select(0, sight.query_indices) if self._is_last(number) else x0
        x1, scale1, seen = add_rms_norm(
            past,
            added,
            layer.post_attention_norm,
            shape.rms_norm_eps,
            xu[:, :C],
            layer.gate_up_proj.build_dropout_spec(mask),
        )
        gate_up = layer.gate_up_proj.forward(xu, mask, seen)
        u_gate_up = xu[:, C:].clone()
        mu = x.new_empty(M, layer.down_proj.ext_features)
        seen = swiglu(gate_up, mu[:, : layer.down_proj.in_features], layer.down_proj.build_dropout_spec(mask))
        out = layer.down_proj.forward(mu, mask, seen)
        u_down = mu[:, layer.down_proj.in_features :].clone()
        return out, LayerActivations(x0, scale0, u_qkv, qkv, au, lse, x1, scale1, u_gate_up, gate_up, u_down)

    def _backward_layer(
        self, number: int, saved: LayerActivations, dx: Float[Tensor, "M C"], context: ForwardContext
    ) -> Float[Tensor, "T C"]:
        """The gradient by the layer's input from that by its output."""
        layer, mask = self.layers[number], context.dropout
        dx, gate_up_grads = self._backward_mlp(layer, saved, dx, mask)
        dau = layer.o_proj.backward_input(dx)
        o_grads = partial(
            layer.o_proj.accumulate_lora_grads, dx, dau, *_split_columns(saved.attn_ext, layer.o_proj.in_features), mask
        )
        self._side_stream(gate_up_grads, o_grads)
        dqkv = self._backward_attention(number, saved, layer.o_proj.complete_input_grad(dau, mask), context)
        dxu = layer.qkv_proj.backward_input(dqkv)
        if self._is_last(number):
            dx = torch.zeros_like(saved.x0).index_copy_(0, context.inputs.last_attention_plan.query_indices.long(), dx)
        through, under = layer.qkv_proj.add_lora_input_grad(dxu, mask)
        dx, xn = rms_norm_backward(through, saved.x0, saved.rstd0, layer.input_norm, dx, under)
        self._side_stream(partial(layer.qkv_proj.accumulate_lora_grads, dqkv, dxu, xn, saved.u_qkv, mask))
        return dx

    def _backward_mlp(
        self, layer: DecoderLayer, saved: LayerActivations, dx: Float[Tensor, "M C"], dropout: Dropout | None
    ) -> tuple[Float[Tensor, "M C"], Callable[[], None]]:
        """The gradient by x₁, and what adds the gradients of gate's and up's factors. In place of what was saved of
        gate and up."""
        dmu = layer.down_proj.backward_input(dx)
        m = torch.empty_like(saved.gate_up[:, : layer.down_proj.in_features])
        dm, under = layer.down_proj.add_lora_input_grad(dmu, dropout)
        dgate_up = swiglu_backward(saved.gate_up, dm, m, under)
        seen = None if under is None else m[None]
        self._side_stream(partial(layer.down_proj.accumulate_lora_grads, dx, dmu, m, saved.u_down, dropout, seen))
        dxu = layer.gate_up_proj.backward_input(dgate_up)
        through, under = layer.gate_up_proj.add_lora_input_grad(dxu, dropout)
        dx, xn = rms_norm_backward(through, saved.x1, saved.rstd1, layer.post_attention_norm, dx, under)
        return dx, partial(layer.gate_up_proj.accumulate_lora_grads, dgate_up, dxu, xn, saved.u_gate_up, dropout)

    def _backward_attention(
        self, number: int, saved: LayerActivations, grad: Float[Tensor, "M _"], context: ForwardContext
    ) -> Float[Tensor, "T _"]:
        """The gradient of the projections' output from that of the attended values."""
        inputs, sight = self.layers[number].o_proj.in_features, self._select_attention_plan(number, context.inputs)
        dqkv = attention_backward(grad, saved.qkv, saved.attn_ext[:, :inputs], saved.lse, sight, self._num_heads)
        apply_rotary(dqkv, *context.cos_sin, sum(self._num_heads), inverse=True)
        return dqkv

    def _is_last(self, number: int) -> bool:
        return number == len(self.layers) - 1

    def _select_attention_plan(self, number: int, inputs: DecoderInputs) -> AttentionPlan:
        return inputs.last_attention_plan if self._is_last(number) else inputs.attention_plan

    def _compute_loss_chunks(
        self, context: ForwardContext
    ) -> Iterable[tuple[Float32[Tensor, " r"], Float[Tensor, "r C"]]]:
        """Losses and their gradient by the hidden state, some labels at a time."""
        rows = context.inputs
        for at in range(0, len(rows.label_indices), LABELS_PER_CHUNK):
            part = slice(at, at + LABELS_PER_CHUNK)
            x = context.hidden_states.index_select(0, rows.label_indices[part])
            normed = torch.empty_like(x)
            _, scale, _ = add_rms_norm(x, None, self.norm, self.config.rms_norm_eps, normed)
            logits = normed @ self.lm_head.T
            losses = cross_entropy_(logits, rows.targets[part], rows.label_weights[part])
            yield losses, rms_norm_backward(logits @ self.lm_head, x, scale, self.norm)[0]


def _split_columns(matrix: Float[Tensor, "T _"], in_features: int) -> tuple[Float[Tensor, "T _"], Float[Tensor, "T _"]]:
    return matrix[:, :in_features], matrix[:, in_features:]
