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

from lorgnette.device import sent
from lorgnette.features.image_features import Features
from lorgnette.inference.kv_cache import Cache, Room
from lorgnette.kernels.attention import attend
from lorgnette.kernels.attention_plan import Sight
from lorgnette.kernels.decode_attention import decode_attention
from lorgnette.kernels.rms_norm import add_norm
from lorgnette.kernels.rotary import rotate
from lorgnette.kernels.swiglu import swiglu
from lorgnette.models.lora_linear import LoraLinear
from lorgnette.models.qwen2_vl.text_decoder import Decoder
from lorgnette.processing.packing import passes
from lorgnette.types import IGNORED, Encoded, PackedBatch

ROWS_AT_ONCE = 32768
"""Prompts' rows that go through in one pass: the widest matrix of a layer is 1.2 GB at 2B's shapes in bf16."""
MOST_ROOMS = 3
Attention = Callable[[int, Float[Tensor, "T _"], Float[Tensor, "T _"]], None]
"""attention(layer, qkv, out): what the rows attend to, written into `out`; keys are turned already."""


class Speaker:
    """A decoder that answers, and the features of the pictures it is asked about.

    The decoder has an adapter attached, or was built without room for one (`build.bare`).
    """

    def __init__(self, decoder: Decoder, features: Features) -> None:
        self.decoder, self.features = decoder, features
        self.device = decoder.embedding.device
        self._caches: list[Cache] = []
        self._pool = torch.cuda.graph_pool_handle() if self._recording else None

    @property
    def _recording(self) -> bool:
        return self.device.type == "cuda"

    @torch.no_grad()
    def begin(self, prompts: Sequence[Encoded], answer_tokens: int, *, tuned: bool) -> Cache:
        """Read the prompts, whose pictures' features are there. The cache's `logits` are the answers' first tokens',
        and it has places for `answer_tokens` of each. It stays the speaker's: the next `begin` may use it anew."""
        lengths = [len(prompt.tokens) for prompt in prompts]
        cache = self._cache(Room(len(prompts), max(lengths) + answer_tokens))
        asked = [_open(prompt) for prompt in prompts]
        first = 0
        for batch in passes(asked, ROWS_AT_ONCE, share="tree"):
            rows = slice(first, first + len(batch.examples))
            self._read(batch, cache, rows, tuned)
            first = rows.stop
        begun = np.zeros((2, cache.room.rows), np.int32)
        begun[:, : len(asked)] = lengths, [prompt.positions[0, -1] for prompt in asked]
        cache.count = len(asked)
        cache.lengths.copy_(sent(begun[0], self.device))
        cache.positions.copy_(sent(begun[1], self.device))
        return cache

    @torch.no_grad()
    def step(self, cache: Cache, tokens: Int[Tensor, " B"], *, tuned: bool) -> Float32[Tensor, "B V"]:
        """Every answer goes on by one token; the logits of the next. The host does not wait for the device."""
        cache.tokens[: cache.count].copy_(tokens)
        graph = cache.graphs.get(tuned)
        if graph is not None:
            graph.replay()
        elif self._recording and tuned in cache.graphs:
            cache.graphs[tuned] = self._recorded(cache, tuned)
        else:
            self._step(cache, tuned)
            cache.graphs[tuned] = None  # seen once: every kernel is compiled
        return cache.logits[: cache.count]

    def _cache(self, need: Room) -> Cache:
        for cache in self._caches:
            if cache.room == need or (self._recording and cache.room.holds(need)):
                return cache
        if len(self._caches) == MOST_ROOMS:
            self._caches.pop(0)
        room = need.padded() if self._recording else need
        self._caches.append(Cache.of(room, self.decoder.shape, self.device, self.decoder.embedding.dtype))
        return self._caches[-1]

    def _read(self, batch: PackedBatch, cache: Cache, rows: slice, tuned: bool) -> None:
        """One pass over prompts: their keys and values into the cache's rows, the logits behind each."""
        decoder, shape = self.decoder, self.decoder.shape
        numbers = [
            batch.tokens, batch.positions.ravel(), batch.image_rows, batch.feature_rows, batch.label_rows,
            _paths(batch, cache.room.places).ravel(),
        ]  # fmt: skip
        flat = sent(np.concatenate(numbers), self.device)
        tokens, positions, image_rows, feature_rows, last_rows, paths = torch.split(flat, list(map(len, numbers)))
        heads, every = (shape.heads, shape.kv_heads), np.arange(len(batch.tokens), dtype=np.int32)
        sight = Sight.of(every, batch.ends, shape.heads // shape.kv_heads, self.device)

        def attention(layer: int, qkv: Float[Tensor, "T _"], out: Float[Tensor, "T _"]) -> None:
            keys = qkv.view(len(qkv), -1, shape.head_dim)[:, shape.heads :]
            torch.index_select(keys, 0, paths, out=cache.places(layer, rows))
            attend(qkv, sight, heads, out)

        x = decoder.embedding.index_select(0, tokens)
        if batch.grids:
            features = self.features.of(batch.grids).to(x.dtype)
            x.index_copy_(0, image_rows.long(), features.index_select(0, feature_rows))
        x = hidden_states(decoder, x, positions.view(3, -1), attention, tuned=tuned)
        write_logits(decoder, x.index_select(0, last_rows), cache.logits[rows])

    def _step(self, cache: Cache, tuned: bool) -> None:
        """From `cache.tokens` to `cache.logits`; nothing here is known to the host."""
        decoder, shape = self.decoder, self.decoder.shape
        inner = shape.heads * shape.head_dim
        here = cache.begins + cache.lengths
        cache.lengths.add_(1)

        def attention(layer: int, qkv: Float[Tensor, "B _"], out: Float[Tensor, "B _"]) -> None:
            cache.places(layer).index_copy_(0, here, qkv[:, inner:].view(len(qkv), -1, shape.head_dim))
            decode_attention(qkv[:, :inner], cache.layers[layer], cache.lengths, out)

        x = decoder.embedding.index_select(0, cache.tokens)
        x = hidden_states(decoder, x, cache.positions.expand(3, -1), attention, tuned=tuned)
        write_logits(decoder, x, cache.logits)
        cache.positions.add_(1)

    def _recorded(self, cache: Cache, tuned: bool) -> torch.cuda.CUDAGraph:
        """Record the step, and take it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others write features
            self._step(cache, tuned)
        graph.replay()
        return graph


def hidden_states(
    decoder: Decoder, x: Float[Tensor, "T C"], positions: Int[Tensor, "3 T"], attention: Attention, *, tuned: bool
) -> Float[Tensor, "T C"]:
    """Before the last norm: `Decoder.forward` that keeps nothing, with the attention given."""
    shape, (T, C) = decoder.shape, x.shape
    turns = decoder.turns(positions)
    delta: Tensor | None = None
    for i, layer in enumerate(decoder.layers):
        xu = x.new_empty(T, layer.qkv.width)
        x, _, _ = add_norm(x, delta, layer.norm1, shape.eps, xu[:, :C])
        qkv = _through(layer.qkv, xu, tuned)
        rotate(qkv, *turns, shape.heads + shape.kv_heads)
        au = x.new_empty(T, layer.o.width)
        attention(i, qkv, au[:, : layer.o.inputs])
        added = _through(layer.o, au, tuned)
        xu = x.new_empty(T, layer.gate_up.width)
        x, _, _ = add_norm(x, added, layer.norm2, shape.eps, xu[:, :C])
        gate_up = _through(layer.gate_up, xu, tuned)
        mu = x.new_empty(T, layer.down.width)
        swiglu(gate_up, mu[:, : layer.down.inputs])
        delta = _through(layer.down, mu, tuned)
    assert delta is not None
    return x + delta


def write_logits(decoder: Decoder, x: Float[Tensor, "R C"], out: Float32[Tensor, "R V"]) -> None:
    """Last norm and head. The product's fp32 sums are not rounded to the weights' dtype: likelihoods that are close
    stay apart."""
    normed = torch.empty_like(x)
    add_norm(x, None, decoder.norm, decoder.shape.eps, normed)
    if x.is_cuda and x.dtype != out.dtype:
        torch.mm(normed, decoder.head.T, out_dtype=torch.float32, out=out)
    else:
        out.copy_(normed @ decoder.head.T)


def _through(linear: LoraLinear, xu: Float[Tensor, "T _"], tuned: bool) -> Float[Tensor, "T O"]:
    return linear.forward(xu, None) if tuned else linear.plain(xu[:, : linear.inputs])


def _open(prompt: Encoded) -> Encoded:
    """The prompt and a first token of its answer, yet unknown, that stands as its label: so that packing says which row
    predicts it. Behind whatever came before, all three coordinates go on from the largest."""
    position = np.full((3, 1), prompt.positions.max() + 1, np.int32)
    unknown = np.zeros(1, np.int32)
    return replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, unknown]),
        labels=np.concatenate([np.full(len(prompt.tokens), IGNORED, np.int32), unknown]),
        positions=np.concatenate([prompt.positions, position], 1),
    )


def _paths(batch: PackedBatch, places: int) -> Int32[np.ndarray, "B L"]:
    """The pass's row at each place of each prompt: what the prompt's last row sees. Places behind a prompt's end name
    row 0, and are not looked at."""
    paths = np.zeros((len(batch.label_rows), places), np.int32)
    for path, last in zip(paths, batch.label_rows, strict=True):
        seen = np.flatnonzero(batch.ends[: last + 1] > last)
        path[: len(seen)] = seen
    return paths
