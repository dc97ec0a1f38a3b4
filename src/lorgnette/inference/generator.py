"""The decoder as it answers: prompts in one packed pass, then token by token, from the weights that are trained.

    prompts ── begin ──▶ cache, logits ── choose ──▶ tokens ── step ──▶ cache, logits ── choose ──▶ …

The adapter is some columns of every matrix (lora_linear.py): with them the tuned model answers, without them the base,
from one copy of the weights, and whatever the optimizer does to them is there at once.

What prompts begin with in common is computed once (encode/share.py). On CUDA a step of some room is recorded the second
time it comes and from then on played back: 28 layers are 400 kernels, and the GPU is through them before a host that
launches them one by one. On a CPU the same code runs unpadded and unrecorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from lorgnette.device import copy_to_device
from lorgnette.features.image_features import Features
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.kernels.attention import attention_forward
from lorgnette.kernels.attention_plan import AttentionPlan
from lorgnette.kernels.decode_attention import decode_attention
from lorgnette.kernels.rms_norm import add_rms_norm
from lorgnette.kernels.rotary import apply_rotary
from lorgnette.kernels.swiglu import swiglu
from lorgnette.models.lora_linear import LoraLinear
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.types import IGNORE_INDEX, Encoded, PackedBatch

MAX_PREFILL_TOKENS = 32768
"""Prompts' rows that go through in one pass: the widest matrix of a layer is 1.2 GB at 2B's shapes in bf16."""
MAX_CACHES = 3
AttentionFn = Callable[[int, Float[Tensor, "T _"], Float[Tensor, "T _"]], None]
"""attention(layer, qkv, out): what the rows attend to, written into `out`; keys are turned already."""


class Generator:
    """A decoder that answers, and the features of the pictures it is asked about.

    The decoder has an adapter attached, or was built without room for one (`build.bare`).
    """

    def __init__(self, decoder: Decoder, features: Features) -> None:
        self.decoder, self.features = decoder, features
        self.device = decoder.embed_tokens.device
        self._caches: list[KVCache] = []
        self._graph_pool = torch.cuda.graph_pool_handle() if self._use_cuda_graphs else None

    @property
    def _use_cuda_graphs(self) -> bool:
        return self.device.type == "cuda"

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Encoded], max_new_tokens: int, *, use_adapter: bool) -> KVCache:
        """Read the prompts, whose pictures' features are there. The cache's `logits` are the answers' first tokens',
        and it has places for `answer_tokens` of each. It stays the speaker's: the next `begin` may use it anew."""
        lengths = [len(prompt.input_ids) for prompt in prompts]
        cache = self._get_cache(CacheShape(len(prompts), max(lengths) + max_new_tokens))
        asked = [_append_unknown_token(prompt) for prompt in prompts]
        first = 0
        for batch in split_into_microbatches(asked, MAX_PREFILL_TOKENS, prefix_sharing="tree"):
            rows = slice(first, first + len(batch.examples))
            self._prefill_microbatch(batch, cache, rows, use_adapter)
            first = rows.stop
        begun = np.zeros((2, cache.shape.num_rows), np.int32)
        begun[:, : len(asked)] = lengths, [prompt.position_ids[0, -1] for prompt in asked]
        cache.num_active_rows = len(asked)
        cache.lengths.copy_(copy_to_device(begun[0], self.device))
        cache.position_ids.copy_(copy_to_device(begun[1], self.device))
        return cache

    @torch.no_grad()
    def decode_step(self, cache: KVCache, input_ids: Int[Tensor, " B"], *, use_adapter: bool) -> Float32[Tensor, "B V"]:
        """Every answer goes on by one token; the logits of the next. The host does not wait for the device."""
        cache.input_ids[: cache.num_active_rows].copy_(input_ids)
        graph = cache.graphs.get(use_adapter)
        if graph is not None:
            graph.replay()
        elif self._use_cuda_graphs and use_adapter in cache.graphs:
            cache.graphs[use_adapter] = self._capture(cache, use_adapter)
        else:
            self._run_decode_step(cache, use_adapter)
            cache.graphs[use_adapter] = None  # seen once: every kernel is compiled
        return cache.logits[: cache.num_active_rows]

    def _get_cache(self, shape: CacheShape) -> KVCache:
        for cache in self._caches:
            if cache.shape == shape or (self._use_cuda_graphs and cache.shape.fits(shape)):
                return cache
        if len(self._caches) == MAX_CACHES:
            self._caches.pop(0)
        room = shape.round_up() if self._use_cuda_graphs else shape
        self._caches.append(
            KVCache.from_config(room, self.decoder.config, self.device, self.decoder.embed_tokens.dtype)
        )
        return self._caches[-1]

    def _prefill_microbatch(self, batch: PackedBatch, cache: KVCache, rows: slice, use_adapter: bool) -> None:
        """One pass over prompts: their keys and values into the cache's rows, the logits behind each."""
        decoder, shape = self.decoder, self.decoder.config
        numbers = [
            batch.input_ids, batch.position_ids.ravel(), batch.image_token_indices, batch.feature_indices, batch.label_indices,
            _build_slot_sources(batch, cache.shape.num_slots).ravel(),
        ]  # fmt: skip
        flat = copy_to_device(np.concatenate(numbers), self.device)
        tokens, positions, image_rows, feature_rows, last_rows, paths = torch.split(flat, list(map(len, numbers)))
        heads, every = (shape.num_heads, shape.num_kv_heads), np.arange(len(batch.input_ids), dtype=np.int32)
        sight = AttentionPlan.from_numpy(every, batch.visible_until, shape.num_heads // shape.num_kv_heads, self.device)

        def attention(layer: int, qkv: Float[Tensor, "T _"], out: Float[Tensor, "T _"]) -> None:
            keys = qkv.view(len(qkv), -1, shape.head_dim)[:, shape.num_heads :]
            torch.index_select(keys, 0, paths, out=cache.view_slots(layer, rows))
            attention_forward(qkv, sight, heads, out)

        x = decoder.embed_tokens.index_select(0, tokens)
        if batch.grids:
            features = self.features.gather(batch.grids).to(x.dtype)
            x.index_copy_(0, image_rows.long(), features.index_select(0, feature_rows))
        x = compute_hidden_states(decoder, x, positions.view(3, -1), attention, use_adapter=use_adapter)
        write_logits(decoder, x.index_select(0, last_rows), cache.logits[rows])

    def _run_decode_step(self, cache: KVCache, use_adapter: bool) -> None:
        """From `cache.tokens` to `cache.logits`; nothing here is known to the host."""
        decoder, shape = self.decoder, self.decoder.config
        inner = shape.num_heads * shape.head_dim
        here = cache.row_offsets + cache.lengths
        cache.lengths.add_(1)

        def attention(layer: int, qkv: Float[Tensor, "B _"], out: Float[Tensor, "B _"]) -> None:
            cache.view_slots(layer).index_copy_(0, here, qkv[:, inner:].view(len(qkv), -1, shape.head_dim))
            decode_attention(qkv[:, :inner], cache.layers[layer], cache.lengths, out)

        x = decoder.embed_tokens.index_select(0, cache.input_ids)
        x = compute_hidden_states(decoder, x, cache.position_ids.expand(3, -1), attention, use_adapter=use_adapter)
        write_logits(decoder, x, cache.logits)
        cache.position_ids.add_(1)

    def _capture(self, cache: KVCache, use_adapter: bool) -> torch.cuda.CUDAGraph:
        """Record the step, and take it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):  # others write features
            self._run_decode_step(cache, use_adapter)
        graph.replay()
        return graph


def compute_hidden_states(
    decoder: Decoder,
    x: Float[Tensor, "T C"],
    position_ids: Int[Tensor, "3 T"],
    attention: AttentionFn,
    *,
    use_adapter: bool,
) -> Float[Tensor, "T C"]:
    """Before the last norm: `Decoder.forward` that keeps nothing, with the attention given."""
    shape, (T, C) = decoder.config, x.shape
    turns = decoder.compute_cos_sin(position_ids)
    delta: Tensor | None = None
    for i, layer in enumerate(decoder.layers):
        xu = x.new_empty(T, layer.qkv_proj.ext_features)
        x, _, _ = add_rms_norm(x, delta, layer.input_norm, shape.rms_norm_eps, xu[:, :C])
        qkv = _project(layer.qkv_proj, xu, use_adapter)
        apply_rotary(qkv, *turns, shape.num_heads + shape.num_kv_heads)
        au = x.new_empty(T, layer.o_proj.ext_features)
        attention(i, qkv, au[:, : layer.o_proj.in_features])
        added = _project(layer.o_proj, au, use_adapter)
        xu = x.new_empty(T, layer.gate_up_proj.ext_features)
        x, _, _ = add_rms_norm(x, added, layer.post_attention_norm, shape.rms_norm_eps, xu[:, :C])
        gate_up = _project(layer.gate_up_proj, xu, use_adapter)
        mu = x.new_empty(T, layer.down_proj.ext_features)
        swiglu(gate_up, mu[:, : layer.down_proj.in_features])
        delta = _project(layer.down_proj, mu, use_adapter)
    assert delta is not None
    return x + delta


def write_logits(decoder: Decoder, x: Float[Tensor, "R C"], out: Float32[Tensor, "R V"]) -> None:
    """Last norm and head. The product's fp32 sums are not rounded to the weights' dtype: likelihoods that are close
    stay apart."""
    normed = torch.empty_like(x)
    add_rms_norm(x, None, decoder.norm, decoder.config.rms_norm_eps, normed)
    if x.is_cuda and x.dtype != out.dtype:
        torch.mm(normed, decoder.lm_head.T, out_dtype=torch.float32, out=out)
    else:
        out.copy_(normed @ decoder.lm_head.T)


def _project(linear: LoraLinear, xu: Float[Tensor, "T _"], use_adapter: bool) -> Float[Tensor, "T O"]:
    return linear.forward(xu, None) if use_adapter else linear.base_forward(xu[:, : linear.in_features])


def _append_unknown_token(prompt: Encoded) -> Encoded:
    """The prompt and a first token of its answer, yet unknown, that stands as its label: so that packing says which row
    predicts it. Behind whatever came before, all three coordinates go on from the largest."""
    position = np.full((3, 1), prompt.position_ids.max() + 1, np.int32)
    unknown = np.zeros(1, np.int32)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, unknown]),
        labels=np.concatenate([np.full(len(prompt.input_ids), IGNORE_INDEX, np.int32), unknown]),
        position_ids=np.concatenate([prompt.position_ids, position], 1),
    )


def _build_slot_sources(batch: PackedBatch, num_slots: int) -> Int32[np.ndarray, "B L"]:
    """The pass's row at each place of each prompt: what the prompt's last row sees. Places behind a prompt's end name
    row 0, and are not looked at."""
    paths = np.zeros((len(batch.label_indices), num_slots), np.int32)
    for path, last in zip(paths, batch.label_indices, strict=True):
        seen = np.flatnonzero(batch.visible_until[: last + 1] > last)
        path[: len(seen)] = seen
    return paths
