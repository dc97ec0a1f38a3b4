"""Qwen2-VL's text decoder over packed tokens, forward and backward: the arithmetic of the fast engine.

T tokens, M queries (T, or fewer in the last layer), C hidden size, H query heads, K key-value heads, D head width, F
intermediate size, L layers, V vocabulary, R labels. x_ext = [x | u]: a linear layer's input with the adapter's columns
beside it (lora_linear.py). One layer:

    x ── norm ──[xn|u]── qkv ── rotary ── attention ──[a|u]── o ──┐
    └───────────────────────── + ─────────────────────────────────┴─ x₁ ── norm ──[xn|u]── gate·up ──[m|u]── down ─┐
                                                               └──────────────────── + ────────────────────────────┴─

The backward pass is written out instead of using autograd. It keeps only the tensors in `LayerActivations` (about 50 kB
per token and layer at 2B's shapes), adds LoRA gradients directly into the optimizer's buffer, and computes them on a
side stream, because nothing waits for them. Only the adapter is trained, so no other weight gradient is computed.

`DecoderLayer.forward` also serves generation (inference/generator.py), which saves nothing and has its own attention.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from lorgnette.device import SideStream, allocate_workspaces
from lorgnette.kernels.attention import attention_backward, attention_forward
from lorgnette.kernels.attention_plan import AttentionPlan
from lorgnette.kernels.cross_entropy import cross_entropy_
from lorgnette.kernels.dropout import Dropout, select_tokens
from lorgnette.kernels.gather_sum import GatherSegments, gather_sum
from lorgnette.kernels.rms_norm import add_rms_norm, rms_norm_backward
from lorgnette.kernels.rotary import apply_rotary, compute_cos_sin, compute_inv_freq, expand_mrope_section
from lorgnette.models.lora_linear import LoraLinear
from lorgnette.models.model_config import LABELS_PER_CHUNK, TextConfig
from lorgnette.models.sharded_weight import ShardedLayers

CosSin = tuple[Float32[Tensor, "T half"], Float32[Tensor, "T half"]]
AttentionFn = Callable[
    [Float[Tensor, "T _"], Float[Tensor, "T _"], Float[Tensor, "M _"]], Float32[Tensor, "M H"] | None
]
"""attention(qkv, values, out): queries and keys are rotated, values are the last columns of `values`, which may be
`qkv`; write into `out`, return the log-sum-exp if there is one."""


@dataclass(frozen=True, slots=True)
class DecoderInputs:
    """A packed batch on the device, except for the embeddings.

    attention_plan: the mask of all T tokens. last_attention_plan: of the M tokens that predict a label; the last layer
    computes keys and values of all tokens and everything else of these M alone.
    label_indices: [R] rows of those M; several labels may share a row, and `label_segments` inverts the gather.
    level_embeds: deepstack's image features, added to the first layers' outputs; 0 for tokens that are no image's. K is
    0 without deepstack.
    """

    position_ids: Int[Tensor, "3 T"]
    attention_plan: AttentionPlan
    last_attention_plan: AttentionPlan
    label_indices: Int32[Tensor, " R"]
    label_segments: GatherSegments
    targets: Int32[Tensor, " R"]
    label_weights: Float32[Tensor, " R"]
    level_embeds: Float[Tensor, "K T C"]


@dataclass(slots=True)
class LayerActivations:
    """The tensors a layer keeps for its backward pass; the norms' outputs are recomputed.

    x0, x1: the residual stream before attention and before the MLP; rstd0, rstd1: of their norms. attn_ext: [a | u].
    The adapter's inputs are not kept, only their columns u.
    """

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
class DecoderLayer:
    """One layer's frozen weights with the adapter's factors."""

    config: TextConfig
    input_norm: Float[Tensor, " C"]
    qkv_proj: LoraLinear
    o_proj: LoraLinear
    post_attention_norm: Float[Tensor, " C"]
    gate_up_proj: LoraLinear
    down_proj: LoraLinear

    @property
    def linears(self) -> tuple[LoraLinear, LoraLinear, LoraLinear, LoraLinear]:
        return self.qkv_proj, self.o_proj, self.gate_up_proj, self.down_proj

    @property
    def norms(self) -> dict[str, Tensor]:
        """The norms' weights by their names in the checkpoint."""
        return {"input_layernorm": self.input_norm, "post_attention_layernorm": self.post_attention_norm}

    @property
    def num_heads(self) -> tuple[int, int]:
        """(query heads, key-value heads)."""
        return self.config.num_heads, self.config.num_kv_heads

    def forward(
        self,
        x: Float[Tensor, "T C"],
        delta: Float[Tensor, "T C"] | None,
        cos_sin: CosSin,
        attention: AttentionFn,
        dropout: Dropout | None = None,
        *,
        query_indices: Int32[Tensor, " M"] | None = None,
        use_adapter: bool = True,
        rank_mask: Bool[Tensor, "#T r"] | None = None,
        save: bool = False,
    ) -> tuple[Float[Tensor, "M C"], Float[Tensor, "M C"], LayerActivations | None]:
        """(x₁, MLP output, activations). The next layer's norm adds the MLP output, which it receives as `delta`.

        query_indices: the tokens that attention's queries and all that follows are computed for; None: all.
        use_adapter, rank_mask: as of `LoraLinear.forward`.
        save: return the activations for `backward`; otherwise None.
        """
        C, eps = x.shape[1], self.config.rms_norm_eps
        u: list[Tensor] = []

        # Norm and projection. The norm adds the previous layer's output, so the residual is read and written once. It
        # writes into the first C columns of x_ext, so [x | u] needs no copy.
        x_ext = x.new_empty(len(x), self.qkv_proj.ext_features)
        spec = self.qkv_proj.build_dropout_spec(dropout)
        x0, rstd0, dropped = add_rms_norm(x, delta, self.input_norm, eps, x_ext[:, :C], spec)
        qkv = self.qkv_proj.forward(x_ext, dropout, dropped, use_adapter=use_adapter, rank_mask=rank_mask)
        if save:  # a copy of u alone: a view would keep all of x_ext
            u.append(x_ext[:, C:].clone())

        # Attention. From here on only the M tokens that are queries.
        M = len(x) if query_indices is None else len(query_indices)
        dropout = select_tokens(dropout, query_indices)
        attn_ext = x.new_empty(M, self.o_proj.ext_features)
        lse = attention(self.rotate_heads(qkv, cos_sin, save=save), qkv, attn_ext[:, : self.o_proj.in_features])
        attn_out = self.o_proj.forward(attn_ext, dropout, use_adapter=use_adapter, rank_mask=rank_mask)

        # MLP.
        x_ext = x.new_empty(M, self.gate_up_proj.ext_features)
        residual = x0 if query_indices is None else x0.index_select(0, query_indices)
        spec = self.gate_up_proj.build_dropout_spec(dropout)
        x1, rstd1, dropped = add_rms_norm(residual, attn_out, self.post_attention_norm, eps, x_ext[:, :C], spec)
        gate_up = self.gate_up_proj.forward(x_ext, dropout, dropped, use_adapter=use_adapter, rank_mask=rank_mask)
        if save:
            u.append(x_ext[:, C:].clone())
        down = self.down_proj
        mlp_ext = x.new_empty(M, down.ext_features)
        u_down = x.new_empty(M, down.ext_features - down.in_features) if save else None
        out = down.forward_swiglu(gate_up, mlp_ext, dropout, u_down, use_adapter=use_adapter, rank_mask=rank_mask)
        if u_down is None:
            return x1, out, None
        u_qkv, u_gate_up = u
        return x1, out, LayerActivations(x0, rstd0, u_qkv, qkv, attn_ext, lse, x1, rstd1, u_gate_up, gate_up, u_down)

    def backward(
        self,
        saved: LayerActivations,
        dx: Float[Tensor, "M C"],
        cos_sin: CosSin,
        plan: AttentionPlan,
        dropout: Dropout | None,
        side_stream: SideStream,
        *,
        query_indices: Int32[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "T C"]:
        """The gradient of the layer's input, from that of its output.

        Accumulates LoRA gradients on the side stream. Uses up `saved`: gate_up is overwritten.
        """
        # MLP, from down_proj to the gradient of x₁. Each LoRA gradient is launched beside the chain of input gradients.
        query_dropout = select_tokens(dropout, query_indices)
        dx, accumulate_gate_up = self._backward_mlp(saved, dx, query_dropout, side_stream)

        # o_proj. Its gradients join those of gate and up: one switch of streams for two small products.
        a, u_o = saved.attn_ext[:, : self.o_proj.in_features], saved.attn_ext[:, self.o_proj.in_features :]
        da_ext = self.o_proj.backward_input(dx)
        accumulate_o = partial(self.o_proj.accumulate_lora_grads, dx, da_ext, a, u_o, query_dropout)
        side_stream.launch(accumulate_gate_up, accumulate_o)

        # Attention, then the rotation backwards: dqkv is the gradient of the projection's output.
        da = self.o_proj.add_lora_input_grad(da_ext, query_dropout)
        rotated = self.recompute_heads(saved.qkv, cos_sin)
        dqkv = attention_backward(da, rotated, a, saved.lse, plan, self.num_heads, saved.qkv)
        del rotated
        self.rotate_heads_backward(dqkv, saved.qkv, cos_sin)

        # qkv_proj and the first norm. Tokens that are no queries have only the gradient of their keys and values.
        dx_ext = self.qkv_proj.backward_input(dqkv)
        if query_indices is not None:
            dx = torch.zeros_like(saved.x0).index_copy_(0, query_indices.long(), dx)
        dxn = self.qkv_proj.add_lora_input_grad(dx_ext, dropout)
        dx, xn = rms_norm_backward(dxn, saved.x0, saved.rstd0, self.input_norm, dx)
        side_stream.launch(partial(self.qkv_proj.accumulate_lora_grads, dqkv, dx_ext, xn, saved.u_qkv, dropout))
        return dx

    def rotate_heads(self, qkv: Float[Tensor, "T _"], cos_sin: CosSin, *, save: bool) -> Float[Tensor, "T _"]:
        """Rotate queries and keys of the projection's output, in place. save: the backward pass will use `qkv`.

        The values of the result are not read.
        """
        apply_rotary(qkv, *cos_sin, sum(self.num_heads))
        return qkv

    def recompute_heads(self, qkv: Float[Tensor, "T _"], cos_sin: CosSin) -> Float[Tensor, "T _"]:
        """The result of `rotate_heads`, from `LayerActivations.qkv`."""
        return qkv

    def rotate_heads_backward(self, dqkv: Float[Tensor, "T _"], qkv: Float[Tensor, "T _"], cos_sin: CosSin) -> None:
        """From the gradient of attention's input to that of the projection's output, in place of `dqkv`.

        qkv: that of `LayerActivations`.
        """
        apply_rotary(dqkv, *cos_sin, sum(self.num_heads), inverse=True)

    def _backward_mlp(
        self, saved: LayerActivations, dx: Float[Tensor, "M C"], dropout: Dropout | None, side_stream: SideStream
    ) -> tuple[Float[Tensor, "M C"], Callable[[], None]]:
        """(gradient of x₁, the launch of gate_up_proj's LoRA gradients)."""
        # down_proj and SwiGLU, in place of gate_up; m is the product again, down_proj's input.
        dm_ext = self.down_proj.backward_input(dx)
        m = torch.empty_like(saved.gate_up[:, : self.down_proj.in_features])
        dropped = self.down_proj.backward_swiglu(dm_ext, saved.gate_up, m, dropout)
        side_stream.launch(partial(self.down_proj.accumulate_lora_grads, dx, dm_ext, m, saved.u_down, dropout, dropped))

        # gate_up_proj and the second norm, whose output is recomputed for the gradient of A.
        dgate_up = saved.gate_up
        dx_ext = self.gate_up_proj.backward_input(dgate_up)
        dxn = self.gate_up_proj.add_lora_input_grad(dx_ext, dropout)
        dx, xn = rms_norm_backward(dxn, saved.x1, saved.rstd1, self.post_attention_norm, dx)
        return dx, partial(self.gate_up_proj.accumulate_lora_grads, dgate_up, dx_ext, xn, saved.u_gate_up, dropout)


def write_features(
    features: Float[Tensor, "P KC"],
    feature_indices: Int32[Tensor, " n"],
    image_token_indices: Int32[Tensor, " n"],
    x: Float[Tensor, "T C"],
    level_embeds: Float[Tensor, "K T C"],
) -> None:
    """Replace the embeddings of image tokens in `x` by features, and write the levels of deepstack behind them.

    features: [P, (1 + K)·C]. `level_embeds` is 0 elsewhere.
    """
    rows, C = features.index_select(0, feature_indices).to(x.dtype), x.shape[1]
    tokens = image_token_indices.long()
    x.index_copy_(0, tokens, rows[:, :C])
    if len(level_embeds):
        levels = rows[:, C:].reshape(len(rows), -1, C)
        level_embeds.index_copy_(1, tokens, levels.transpose(0, 1))


def add_level(
    out: Float[Tensor, "M C"],
    level_embeds: Float[Tensor, "K T C"],
    layer: int,
    query_indices: Int32[Tensor, " M"] | None = None,
) -> None:
    """Add deepstack's features to the MLP output of a layer: the next layer's norm adds both to the residual.

    The vision tower is frozen, so they have no gradient.
    """
    if layer < len(level_embeds):
        level = level_embeds[layer]
        out.add_(level if query_indices is None else level.index_select(0, query_indices))


@dataclass(slots=True)
class ForwardContext:
    """A forward pass, ready for its backward pass.

    activations: by layer; a recomputed layer keeps its input (x, delta) alone.
    hidden_states: before the last norm, of the M tokens of the last layer.
    """

    inputs: DecoderInputs
    dropout: Dropout | None
    cos_sin: CosSin
    activations: list[LayerActivations | tuple[Tensor, Tensor | None]]
    hidden_states: Float[Tensor, "M C"]


class Decoder:
    """The decoder's frozen weights with the adapter's factors."""

    def __init__(
        self,
        config: TextConfig,
        embed_tokens: Float[Tensor, "V C"],
        layers: Sequence[DecoderLayer],
        norm: Float[Tensor, " C"],
        lm_head: Float[Tensor, "V C"],
        shards: ShardedLayers | None = None,
    ) -> None:
        """shards: of the layers' matrices, if they are cut over ranks."""
        self.config, self.layers, self.shards, device = config, layers, shards, embed_tokens.device
        self.embed_tokens, self.norm, self.lm_head = embed_tokens, norm, lm_head
        is_interleaved = config.is_mrope_interleaved
        self._mrope_axes = expand_mrope_section(config.mrope_section, device, is_interleaved=is_interleaved)
        self._inv_freq = compute_inv_freq(config.head_dim, config.rope_theta, device)
        self._side_stream = SideStream(device)

    def allocate_workspaces(self) -> None:
        """Let cuBLAS take its workspaces for the current stream and for the side stream (device.py)."""
        allocate = partial(allocate_workspaces, self.embed_tokens.device, self.embed_tokens.dtype)
        allocate()
        self._side_stream.launch(allocate)
        self._side_stream.join()

    def compute_cos_sin(self, position_ids: Int[Tensor, "3 T"]) -> CosSin:
        """Rotary cosines and sines of every token, shared by all layers."""
        return compute_cos_sin(position_ids, self._mrope_axes, self._inv_freq)

    @property
    def linears(self) -> Iterator[LoraLinear]:
        return (linear for layer in self.layers for linear in layer.linears)

    def forward(
        self, x: Float[Tensor, "T C"], inputs: DecoderInputs, dropout: Dropout | None, *, recompute_layers: int = 0
    ) -> ForwardContext:
        """Run all layers on embedded tokens.

        recompute_layers: activation checkpointing. The first n layers keep their input alone, and `backward` runs them
        again.
        """
        context = ForwardContext(inputs, dropout, self.compute_cos_sin(inputs.position_ids), [], x)
        delta: Tensor | None = None
        for i in range(len(self.layers)):
            x1, out, saved = self._forward_layer(i, x, delta, context, save=i >= recompute_layers)
            add_level(out, inputs.level_embeds, i, self._select_plan(i, inputs)[1])
            context.activations.append((x, delta) if saved is None else saved)
            x, delta = x1, out
        assert delta is not None
        context.hidden_states = x + delta
        return context

    def backward(self, context: ForwardContext, dx: Float[Tensor, "M C"]) -> None:
        """Add the LoRA gradients, from the gradient of the hidden states. Uses up `context`."""
        try:
            for i in reversed(range(len(self.layers))):
                plan, queries = self._select_plan(i, context.inputs)
                # No variable holds the activations: they are freed before the next layer is recomputed.
                dx = self.layers[i].backward(
                    self._pop_activations(i, context), dx, context.cos_sin, plan, context.dropout, self._side_stream,
                    query_indices=queries,
                )  # fmt: skip
        finally:  # also out of memory: no tensor may be freed, and no capture end, while the side stream is at work
            self._side_stream.join()

    def compute_losses(self, context: ForwardContext) -> Float32[Tensor, " R"]:
        """Cross-entropy of every label."""
        return torch.cat([losses for losses, _ in self._compute_loss_chunks(context)])

    def compute_losses_and_grad(
        self, context: ForwardContext, loss_scale: Float32[Tensor, ""] | None = None
    ) -> tuple[Float32[Tensor, " R"], Float[Tensor, "M C"]]:
        """Cross-entropy of every label, and the gradient of Σ weight · cross-entropy by the hidden states.

        loss_scale: a factor of the gradient, read on the device.
        """
        losses, grads = zip(*self._compute_loss_chunks(context, loss_scale), strict=True)
        dx = gather_sum(torch.cat(grads), context.inputs.label_segments, torch.empty_like(context.hidden_states))
        return torch.cat(losses), dx

    def _forward_layer(
        self, i: int, x: Float[Tensor, "T C"], delta: Float[Tensor, "T C"] | None, context: ForwardContext, save: bool
    ) -> tuple[Float[Tensor, "M C"], Float[Tensor, "M C"], LayerActivations | None]:
        layer, (plan, queries) = self.layers[i], self._select_plan(i, context.inputs)

        def attention(
            qkv: Float[Tensor, "T _"], values: Float[Tensor, "T _"], out: Float[Tensor, "M _"]
        ) -> Float32[Tensor, "M H"] | None:
            return attention_forward(qkv, plan, layer.num_heads, out, values)

        return layer.forward(x, delta, context.cos_sin, attention, context.dropout, query_indices=queries, save=save)

    def _pop_activations(self, i: int, context: ForwardContext) -> LayerActivations:
        """Layer i's activations, recomputed if only its input was kept."""
        saved = context.activations.pop()
        if not isinstance(saved, tuple):
            return saved
        recomputed = self._forward_layer(i, *saved, context, save=True)[2]
        assert recomputed is not None
        return recomputed

    def _select_plan(self, i: int, inputs: DecoderInputs) -> tuple[AttentionPlan, Int32[Tensor, " M"] | None]:
        """(plan, query_indices) of layer i. Only the last layer leaves out tokens: the others' keys need every one."""
        if i < len(self.layers) - 1:
            return inputs.attention_plan, None
        return inputs.last_attention_plan, inputs.last_attention_plan.query_indices

    def _compute_loss_chunks(
        self, context: ForwardContext, loss_scale: Float32[Tensor, ""] | None = None
    ) -> Iterable[tuple[Float32[Tensor, " r"], Float[Tensor, "r C"]]]:
        """(losses, gradient by the gathered hidden states) of LABELS_PER_CHUNK labels at a time."""
        inputs = context.inputs
        weights = inputs.label_weights if loss_scale is None else inputs.label_weights * loss_scale
        for start in range(0, len(inputs.label_indices), LABELS_PER_CHUNK):
            chunk = slice(start, start + LABELS_PER_CHUNK)
            x = context.hidden_states.index_select(0, inputs.label_indices[chunk])
            normed = torch.empty_like(x)
            _, rstd, _ = add_rms_norm(x, None, self.norm, self.config.rms_norm_eps, normed)
            logits = normed @ self.lm_head.T
            losses = cross_entropy_(logits, inputs.targets[chunk], weights[chunk])
            # The logits are now their gradient, which goes back through the head and the norm at once.
            yield losses, rms_norm_backward(logits @ self.lm_head, x, rstd, self.norm)[0]
