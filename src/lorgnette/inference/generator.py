"""Generation with the weights that are trained: prompts in packed micro-batches, then token by token.

    prompts ── prefill ──▶ KV cache, logits ── sample ──▶ tokens ── decode_step ──▶ KV cache, logits ── sample ──▶ …

The adapter is some columns of every matrix (models/lora_linear.py). With them the fine-tuned model answers, without
them the base model, from one copy of the weights, and an optimizer step takes effect at once.

A prefix that prompts share is computed once (processing/prefix_tree.py). On CUDA the second decode step of a cache is
captured as a CUDA graph, and later steps replay it: one step launches 400 kernels, and the GPU would wait for the host.
On a CPU the same code runs without padding and graphs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from lorgnette.device import allocate_workspaces, capture_graph, copy_to_device
from lorgnette.features.feature_lru import FeatureLru
from lorgnette.features.image_features import Features
from lorgnette.inference.kv_cache import CacheShape, KVCache, StepKind
from lorgnette.kernels.attention import attention_forward
from lorgnette.kernels.attention_plan import AttentionPlan
from lorgnette.kernels.decode_attention import decode_attention
from lorgnette.kernels.rms_norm import add_rms_norm
from lorgnette.models.networks import Decoder, add_level, write_features
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.types import IGNORE_INDEX, Encoded, PackedBatch

MAX_PREFILL_TOKENS = 32768
"""Prompt tokens per micro-batch: the widest matrix of a layer is 1.2 GB at 2B's shapes in bf16."""
MAX_CACHES = 3
MIN_FREE_BYTES = 2**28
"""More than a decode step takes while it is captured."""
AttentionFn = Callable[[int, Float[Tensor, "T _"], Float[Tensor, "T _"], Float[Tensor, "T _"]], None]
"""attention(layer, qkv, qkv, out): write into `out`; queries and keys are rotated already. Only a layer that saves has
its values in another matrix."""


class Generator:
    """Generates answers with a decoder and the image features of its prompts.

    The decoder has an adapter attached, or was allocated for none (`AdapterShape.empty`).
    """

    def __init__(self, decoder: Decoder, features: Features | FeatureLru) -> None:
        self.decoder, self.features = decoder, features
        self.device = decoder.embed_tokens.device
        self._caches: list[KVCache] = []
        self._use_padding = self.device.type == "cuda"
        self._use_cuda_graphs = self._use_padding and decoder.shards is None  # as in engine/fast.py
        self._graph_pool = torch.cuda.graph_pool_handle() if self._use_cuda_graphs else None
        self._graph_stream = torch.cuda.Stream(self.device) if self._use_cuda_graphs else None  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Encoded], max_new_tokens: int, *, use_adapter: bool) -> KVCache:
        """Compute keys and values of the prompts and the logits of each answer's first token.

        The features of their images must be ready. The cache holds `max_new_tokens` more per row. The generator owns
        it and may reuse it in the next `prefill`.
        """
        lengths = [len(prompt.input_ids) for prompt in prompts]
        cache = self._get_cache(CacheShape(len(prompts), max(lengths) + max_new_tokens))
        self.prefill_rows(cache, range(len(prompts)), prompts, use_adapter=use_adapter)
        state = np.zeros(cache.state.shape, np.int32)
        state[:, : len(prompts)] = lengths, list(map(find_next_position, prompts)), [1] * len(prompts)
        cache.num_active_rows = len(prompts)
        cache.state.copy_(copy_to_device(state, self.device))
        return cache

    @torch.no_grad()
    def prefill_rows(
        self,
        cache: KVCache,
        rows: Sequence[int],
        prompts: Sequence[Encoded],
        *,
        use_adapter: bool,
        rank_mask: Bool[Tensor, "1 r"] | None = None,
    ) -> None:
        """Write the prompts' keys and values into these rows, and the logits of each answer's first token.

        The caller sets the rows' `state`. rank_mask: as of `LoraLinear.forward`, for all tokens of the prompts.
        """
        extended = [_append_unknown_token(prompt) for prompt in prompts]
        end = 0
        for batch in split_into_microbatches(extended, MAX_PREFILL_TOKENS, prefix_sharing=True):
            first, end = end, end + len(batch.examples)
            self._prefill_microbatch(batch, cache, rows[first:end], use_adapter, rank_mask)

    @torch.no_grad()
    def decode_step(
        self,
        cache: KVCache,
        input_ids: Int[Tensor, " B"],
        *,
        use_adapter: bool,
        rank_mask: Bool[Tensor, "B r"] | None = None,
    ) -> Float32[Tensor, "B V"]:
        """Append one token to every answer and return the logits of the next. The host does not wait for the device.

        rank_mask: of every row of the cache, as of `LoraLinear.forward`; at one address, because steps are captured.
        """
        cache.input_ids[: cache.num_active_rows].copy_(input_ids)
        kind: StepKind = use_adapter if rank_mask is None else "masked"
        graph = cache.graphs.get(kind)
        if graph is not None:
            graph.replay()
        elif self._graph_stream is not None and kind in cache.graphs:
            if torch.cuda.mem_get_info(self.device)[0] < MIN_FREE_BYTES:
                torch.cuda.empty_cache()  # while it captures, torch gives no memory back
            allocate = partial(allocate_workspaces, self.device, self.decoder.embed_tokens.dtype)
            with capture_graph(self._graph_stream, self._graph_pool, allocate) as graph:
                self._run_decode_step(cache, use_adapter, rank_mask)
            cache.graphs[kind] = graph
            graph.replay()
        else:
            self._run_decode_step(cache, use_adapter, rank_mask)
            cache.graphs[kind] = None  # every kernel is compiled now: the next step can be captured
        return cache.logits[: cache.num_active_rows]

    def drop_caches(self) -> None:
        """Free the KV caches with their graphs, and give their memory back to the GPU."""
        self._caches.clear()
        # torch does not capture into a pool again once all of its graphs are gone.
        self._graph_pool = torch.cuda.graph_pool_handle() if self._use_cuda_graphs else None
        torch.cuda.empty_cache()

    def _get_cache(self, shape: CacheShape) -> KVCache:
        """A cache that fits, reused if possible: its graphs are kept with it."""
        for cache in self._caches:
            if cache.shape == shape or (self._use_padding and cache.shape.fits(shape)):
                return cache
        if len(self._caches) == MAX_CACHES:
            self._caches.pop(0)
        shape = shape.round_up() if self._use_padding else shape
        dtype = self.decoder.embed_tokens.dtype
        self._caches.append(KVCache.from_config(shape, self.decoder.config, self.device, dtype))
        return self._caches[-1]

    def _prefill_microbatch(
        self, batch: PackedBatch, cache: KVCache, rows: Sequence[int], use_adapter: bool, rank_mask: Tensor | None
    ) -> None:
        """Fill the cache's rows with keys and values, and write each prompt's next-token logits."""
        decoder, config = self.decoder, self.decoder.config
        # All integers of the micro-batch in one copy to the device.
        arrays = [
            batch.input_ids, batch.position_ids.ravel(), batch.image_token_indices, batch.feature_indices,
            batch.label_indices, np.array(rows, np.int32), *_list_slot_copies(batch, rows, cache.shape.num_slots),
        ]  # fmt: skip
        parts = torch.split(copy_to_device(np.concatenate(arrays), self.device), list(map(len, arrays)))
        input_ids, position_ids, image_token_indices, feature_indices, last_tokens, row_indices, sources, slots = parts
        row_indices, slots = row_indices.long(), slots.long()
        H, K = config.num_heads, config.num_kv_heads
        all_tokens = np.arange(len(batch.input_ids), dtype=np.int32)
        plan = AttentionPlan.from_numpy(all_tokens, batch.visible_until, H // K, self.device)

        # Prompts that share a prefix get copies of its keys and values, so that decoding needs no prefix tree.
        def attention(layer: int, qkv: Float[Tensor, "T _"], _: Tensor, out: Float[Tensor, "T _"]) -> None:
            keys_values = qkv.view(len(qkv), -1, config.head_dim)[:, H:]
            cache.view_slots(layer).index_copy_(0, slots, keys_values.index_select(0, sources))
            attention_forward(qkv, plan, (H, K), out)

        x = decoder.embed_tokens.index_select(0, input_ids)
        level_embeds = None
        if batch.grids:
            level_embeds = x.new_zeros(config.num_deepstack_levels, *x.shape)
            write_features(self.features.gather(batch.grids), feature_indices, image_token_indices, x, level_embeds)
        x = compute_hidden_states(
            decoder, x, position_ids.view(3, -1), attention, use_adapter=use_adapter, rank_mask=rank_mask,
            level_embeds=level_embeds,
        )  # fmt: skip
        logits = cache.logits.new_empty(len(rows), config.vocab_size)
        write_logits(decoder, x.index_select(0, last_tokens), logits)
        cache.logits.index_copy_(0, row_indices, logits)

    def _run_decode_step(self, cache: KVCache, use_adapter: bool, rank_mask: Tensor | None) -> None:
        """From `cache.input_ids` to `cache.logits`. On a GPU the host reads no value, so that it can be captured."""
        decoder, config = self.decoder, self.decoder.config
        q_width = config.num_heads * config.head_dim
        # A row that is full writes into its last slot again, and not into the next row.
        slots_in_row = cache.lengths.clamp(max=cache.shape.num_slots - 1)
        new_slots, num_keys = cache.row_offsets + slots_in_row, slots_in_row + 1
        longest = int(num_keys.max()) if self.device.type == "cpu" else cache.shape.num_slots

        def attention(layer: int, qkv: Float[Tensor, "B _"], _: Tensor, out: Float[Tensor, "B _"]) -> None:
            cache.view_slots(layer).index_copy_(0, new_slots, qkv[:, q_width:].view(len(qkv), -1, config.head_dim))
            decode_attention(qkv[:, :q_width], cache.layers[layer][:, :longest], num_keys, out)

        x = decoder.embed_tokens.index_select(0, cache.input_ids)
        position_ids = cache.position_ids.expand(3, -1)
        x = compute_hidden_states(decoder, x, position_ids, attention, use_adapter=use_adapter, rank_mask=rank_mask)
        write_logits(decoder, x, cache.logits)
        cache.state[:2].add_(cache.active)


def compute_hidden_states(
    decoder: Decoder, x: Float[Tensor, "T C"], position_ids: Int[Tensor, "3 T"], attention: AttentionFn,
    *, use_adapter: bool, rank_mask: Bool[Tensor, "#T r"] | None = None,
    level_embeds: Float[Tensor, "K T C"] | None = None,
) -> Float[Tensor, "T C"]:  # fmt: skip
    """Run all layers on embedded tokens and save nothing. Returns the hidden states before the last norm.

    level_embeds: deepstack's image features, if there are images.
    """
    cos_sin = decoder.compute_cos_sin(position_ids)
    delta: Tensor | None = None
    for i, layer in enumerate(decoder.layers):
        x, delta, _ = layer.forward(
            x, delta, cos_sin, partial(attention, i), use_adapter=use_adapter, rank_mask=rank_mask
        )
        if level_embeds is not None:
            add_level(delta, level_embeds, i)
    assert delta is not None
    return x + delta


def write_logits(decoder: Decoder, x: Float[Tensor, "R C"], out: Float32[Tensor, "R V"]) -> None:
    """Last norm and output layer. The fp32 sums are not rounded to the weights' dtype: close probabilities stay
    apart."""
    normed = torch.empty_like(x)
    add_rms_norm(x, None, decoder.norm, decoder.config.rms_norm_eps, normed)
    if x.is_cuda and x.dtype != out.dtype:
        torch.mm(normed, decoder.lm_head.T, out_dtype=torch.float32, out=out)
    else:
        out.copy_(normed @ decoder.lm_head.T)


def find_next_position(prompt: Encoded) -> int:
    """The position of the answer's first token: all three M-RoPE coordinates continue from the largest."""
    return int(prompt.position_ids.max()) + 1


def _append_unknown_token(prompt: Encoded) -> Encoded:
    """The prompt and a placeholder for the answer's first token, as its label: packing then keeps the token that
    predicts it."""
    position = np.full((3, 1), find_next_position(prompt), np.int32)
    position_ids = np.concatenate([prompt.position_ids, position], 1)
    labels = np.append(np.full(len(prompt.input_ids), IGNORE_INDEX, np.int32), np.int32(0))
    input_ids = np.append(prompt.input_ids, np.int32(0))
    return replace(prompt, input_ids=input_ids, labels=labels, position_ids=position_ids)


def _list_slot_copies(
    batch: PackedBatch, rows: Sequence[int], num_slots: int
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """(packed tokens, slots): each row's slots get the keys and values of the tokens that its last token sees."""
    sources, slots = [], []
    for row, last in zip(rows, batch.label_indices, strict=True):
        visible = np.flatnonzero(batch.visible_until[: last + 1] > last)
        sources.append(visible)
        slots.append(row * num_slots + np.arange(len(visible)))
    return np.concatenate(sources).astype(np.int32), np.concatenate(slots).astype(np.int32)
