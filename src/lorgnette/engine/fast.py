"""The fast engine: our own decoder, forward and backward, on packed batches.

On CUDA a pass of some shape is recorded the second time it comes, as a CUDA graph, and from then on played back in one
launch: at 2B's shapes the GPU is through a step before a host that launches its 1,500 kernels one by one. A graph wants
its sizes fixed, so a batch is padded up to a shape that was recorded: padding rows see nothing and are not seen. The
host never waits for the device inside a step.

On a CPU the same code runs unpadded and unrecorded: the kernels' plain definitions, to be compared with `reference`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor

from lorgnette.features.image_features import Features
from lorgnette.kernels.attention_plan import AttentionPlan, compute_plan_sizes, plan_attention
from lorgnette.kernels.dropout import Dropout
from lorgnette.kernels.gather_sum import GatherSegments, build_segments
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.qwen2_vl.text_decoder import Decoder, DecoderInputs
from lorgnette.processing.packing import Share
from lorgnette.types import PackedBatch

MAX_GRAPHS = 24
"""Graphs kept. Their memory is one pool, but each holds its launches: some megabytes."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The sizes a pass is padded to: rows, rows of the last layer, labels."""

    tokens: int
    last_layer_tokens: int
    labels: int

    @classmethod
    def from_batch(cls, batch: PackedBatch) -> "BatchShape":
        """The batch's own sizes."""
        return cls(len(batch.input_ids), len(np.unique(batch.label_indices)), len(batch.targets))

    @classmethod
    def covering(cls, batches: Sequence[PackedBatch]) -> "BatchShape":
        """For the largest of these batches and those of nearly its size, so that one recording serves them all."""
        rooms = [cls.from_batch(batch) for batch in batches]
        most = max(room.tokens for room in rooms)
        alike = [room for room in rooms if room.tokens > 0.9 * most]
        return cls(most, max(room.last_layer_tokens for room in alike), max(room.labels for room in alike)).pad()

    def pad(self) -> "BatchShape":
        """Room for a batch of these sizes and a little more: for a row at least that is none of the batch's, and for
        fewer rows in the last layer than in the others."""
        rows = _round_up(self.tokens + 1, 64)
        return BatchShape(rows, min(_round_up(self.last_layer_tokens, 4), rows - 1), _round_up(self.labels, 2))

    def fits(self, shape: "BatchShape") -> bool:
        """Whether a batch of those sizes fits without much waste."""
        fits = (
            self.tokens > shape.tokens
            and self.last_layer_tokens >= shape.last_layer_tokens
            and self.labels >= shape.labels
        )
        return fits and self.tokens - shape.tokens <= shape.tokens // 24 + 32


def _round_up(count: int, parts: int) -> int:
    """Up to the next of `parts` even steps between two powers of two (of 16 at the least)."""
    step = max(16, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


class StaticInputs:
    """A room's tensors on the device, filled anew for every pass: one copy of everything that is a number.

    x: [T, C] embedded rows; loss: what the pass gave; graph: its recording, once there is one.
    """

    def __init__(self, shape: BatchShape, decoder: Decoder) -> None:
        device = decoder.embed_tokens.device
        self.shape = shape
        self._heads_per_kv = decoder.config.num_heads // decoder.config.num_kv_heads
        self.x = torch.zeros(shape.tokens, decoder.config.hidden_size, dtype=decoder.embed_tokens.dtype, device=device)
        self.loss = torch.zeros((), device=device)
        self.losses: Float32[Tensor, " R"] = torch.zeros(shape.labels, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.num_uses = 0
        self._sizes = {name: len(values) for name, values in self._flatten(None).items()}
        self._buffer = torch.zeros(sum(self._sizes.values()), dtype=torch.int32, device=device)
        parts = dict(zip(self._sizes, torch.split(self._buffer, list(self._sizes.values())), strict=True))
        self.input_ids, self.image_token_indices, self.feature_indices = (
            parts["tokens"],
            parts["image_rows"],
            parts["feature_rows"],
        )
        self.dropout_key = parts["key"][0]
        every = torch.arange(shape.tokens, dtype=torch.int32, device=device)
        self.batch = DecoderInputs(
            position_ids=parts["positions"].view(3, -1),
            attention_plan=AttentionPlan.from_parts(parts, "", every),
            last_attention_plan=AttentionPlan.from_parts(parts, "last_", parts["last_rows"]),
            label_indices=parts["label_rows"],
            label_segments=GatherSegments(parts["label_places"], parts["label_copies"]),
            targets=parts["targets"],
            label_weights=parts["weights"].view(torch.float32),
        )

    def copy_from(self, batch: PackedBatch, dropout_key: int) -> None:
        """Send the batch. key: of this pass's dropout."""
        columns = self._flatten(batch)
        columns["key"][0] = dropout_key
        host = torch.from_numpy(np.concatenate(list(columns.values())))
        if self._buffer.is_cuda:
            host = host.pin_memory()
        self._buffer.copy_(host, non_blocking=True)

    def _flatten(self, batch: PackedBatch | None) -> dict[str, Int32[np.ndarray, " n"]]:
        """Every number of a pass, padded to the room; None: zeros of the same sizes."""
        (T, M, R), group = (self.shape.tokens, self.shape.last_layer_tokens, self.shape.labels), self._heads_per_kv
        sizes = {
            "tokens": T, "positions": 3 * T, "ends": T, "last_rows": M, "label_rows": R, "label_places": R,
            "label_copies": M + 1, "targets": R, "weights": R, "image_rows": T, "feature_rows": T, "key": 1,
            **compute_plan_sizes("", T, T, group), **compute_plan_sizes("last_", T, M, group),
        }  # fmt: skip
        made = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        if batch is None:
            return made
        last = np.unique(batch.label_indices)
        label_rows = np.searchsorted(last, batch.label_indices).astype(np.int32)
        filled = {
            "tokens": batch.input_ids, "targets": batch.targets, "image_rows": batch.image_token_indices, "ends": batch.visible_until,
            "feature_rows": batch.feature_indices, "label_rows": label_rows, "last_rows": last,
        }  # fmt: skip
        for name, values in filled.items():
            made[name][: len(values)] = values
        made["last_rows"][len(last) :] = T - 1  # sees nothing
        made["positions"].reshape(3, T)[:, : len(batch.input_ids)] = batch.position_ids
        made["weights"].view(np.float32)[: len(batch.label_weights)] = batch.label_weights
        # What padding took is no row's copy: hundreds of one row would be added up while all others wait.
        made["label_places"][: len(label_rows)], made["label_copies"][:] = build_segments(label_rows, M)
        made |= plan_attention("", np.arange(T, dtype=np.int32), made["ends"], group)
        return made | plan_attention("last_", made["last_rows"], made["ends"], group)


class GraphStream:
    """A stream of its own with a pool of memory for all passes, recorded or not: what one leaves is the next one's,
    where on two streams each would keep its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.MemPool()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """What is launched here runs behind what was launched before, and before what is launched next."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
                yield
        finally:
            here.wait_stream(self._stream)

    @contextmanager
    def capture(self) -> Iterator[torch.cuda.CUDAGraph]:
        """What is launched here runs whenever the graph is replayed. The host does not wait, as torch.cuda.graph would
        have it do; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        pool: Any = self._pool.id  # torch's stubs know the other kind of handle alone
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool, "thread_local")
            try:
                yield graph
            finally:
                graph.capture_end()


class FastEngine:
    """Losses of packed batches; gradients are added up in the flat adapter's `.grad`."""

    def __init__(
        self,
        decoder: Decoder,
        adapter: FlatLoraParams,
        features: Features,
        *,
        dropout: float,
        seed: int,
        group_by_image: bool = False,
        recompute_layers: int = 0,
    ) -> None:
        """grouped: passes hold all captions of a picture, which share its rows under dropout too, masks included;
        again: so many layers are run a second time in the backward pass instead of being kept (memory.py says how many
        must)."""
        self.decoder, self.adapter, self.features = decoder, adapter, features
        self.device = decoder.embed_tokens.device
        self.parameters = [adapter.values]
        self._weight_copy = adapter.attach(decoder)
        self.prefix_sharing: Share = "none" if dropout and not group_by_image else "tree"
        self.eval_prefix_sharing: Share = "tree"
        self._dropout, self._seed, self._recompute_layers = dropout, seed, recompute_layers
        self._static_inputs: dict[BatchShape, StaticInputs] = {}
        self._graph_stream = GraphStream(self.device) if self._use_graphs else None

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed_tokens.dtype

    @property
    def _use_graphs(self) -> bool:
        """In fp32, which the attention kernels are not for, its plain definition asks the device for numbers."""
        return self.device.type == "cuda" and self.dtype != torch.float32

    def backward(self, batch: PackedBatch, rng_offset: int) -> Float32[Tensor, ""]:
        """Σ weights · cross-entropy, on the device; its gradient is added up. draw: what dropout's masks are drawn
        from."""
        with self._drop_graphs_on_oom():
            station = self._load_batch(batch, rng_offset)
            station.num_uses += 1
            if station.graph is None and self._use_graphs and station.num_uses > 1:
                self._capture(station)
            if station.graph is None:
                self._run_eager(station)
        if station.graph is not None:
            station.graph.replay()
        return station.loss.clone()

    @torch.no_grad()
    def warmup(self, batches: Sequence[PackedBatch]) -> None:
        """Run a pass on no pictures, in the room that these batches will share, and once more as in evaluation: every
        kernel is there then."""
        station = self._load_largest(batches)
        self._run_eager(station)
        self.decoder.compute_losses(
            self.decoder.forward(station.x, station.batch, None, recompute_layers=len(self.decoder.layers))
        )

    def capture_ahead(self, batches: Sequence[PackedBatch]) -> None:
        """Record a pass in the room that these batches will share, and play it once for nothing, which brings it to the
        device: their steps are played back from the first.

        The kernels must be there, as after `warm` of a smaller model. Where memory does not hold a pass, nothing is
        recorded: the step that asks for it will be cut."""
        if not self._use_graphs:
            return
        with suppress(torch.OutOfMemoryError), self._drop_graphs_on_oom():
            self._capture(self._load_largest(batches)).replay()
        assert self.adapter.values.grad is not None
        self.adapter.values.grad.zero_()

    def _load_largest(self, batches: Sequence[PackedBatch]) -> StaticInputs:
        station = self._allocate_inputs(BatchShape.covering(batches))
        station.copy_from(max(batches, key=lambda batch: len(batch.input_ids)), 0)
        return station

    @torch.no_grad()
    def compute_label_losses(self, batch: PackedBatch) -> Float32[Tensor, " R"]:
        """Cross-entropy of every label, in fp32, without dropout."""
        station = self._load_batch(batch)
        passed = self.decoder.forward(station.x, station.batch, None, recompute_layers=len(self.decoder.layers))
        return self.decoder.compute_losses(passed)[: len(batch.targets)]

    def compute_loss(self, batch: PackedBatch) -> Float32[Tensor, ""]:
        """Σ weights · cross-entropy, without dropout and gradient."""
        losses = self.compute_label_losses(batch)
        return (losses * torch.from_numpy(batch.label_weights).to(self.device, non_blocking=True)).sum()

    def sync_weights(self) -> None:
        """The optimizer has changed the masters: copy them to where they are computed with."""
        self._weight_copy()

    @torch.no_grad()
    def _load_batch(self, batch: PackedBatch, rng_offset: int = 0) -> StaticInputs:
        """The batch on the device, its rows embedded."""
        station = self._select_inputs(batch)
        station.copy_from(batch, _derive_dropout_key(self._seed, rng_offset))
        torch.index_select(self.decoder.embed_tokens, 0, station.input_ids, out=station.x)
        if batch.grids:
            count = len(batch.image_token_indices)
            features = self.features.gather(batch.grids).to(station.x.dtype)
            rows = features.index_select(0, station.feature_indices[:count])
            station.x.index_copy_(0, station.image_token_indices[:count].long(), rows)
        return station

    def _select_inputs(self, batch: PackedBatch) -> StaticInputs:
        exact = BatchShape.from_batch(batch)
        if not self._use_graphs:
            return StaticInputs(exact, self.decoder)
        for room, station in self._static_inputs.items():
            if room.fits(exact):
                return station
        return self._allocate_inputs(exact.pad())

    def _allocate_inputs(self, shape: BatchShape) -> StaticInputs:
        made = StaticInputs(shape, self.decoder)
        if len(self._static_inputs) == MAX_GRAPHS:
            self._static_inputs.pop(next(iter(self._static_inputs)))
        self._static_inputs[shape] = made
        return made

    @contextmanager
    def _drop_graphs_on_oom(self) -> Iterator[None]:
        """Where memory runs out, what was recorded is given up with what it holds, for what will be cut smaller. A
        pool whose recordings are all gone takes no other: there is a new one."""
        try:
            yield
        except torch.OutOfMemoryError:
            self._static_inputs.clear()
            self._graph_stream = GraphStream(self.device) if self._use_graphs else None
            raise

    def _run_eager(self, inputs: StaticInputs) -> None:
        with nullcontext() if self._graph_stream is None else self._graph_stream.eager():
            self._forward_backward(inputs)

    @torch.no_grad()
    def _forward_backward(self, inputs: StaticInputs) -> None:
        mask = Dropout(inputs.dropout_key, self._dropout) if self._dropout else None
        passed = self.decoder.forward(inputs.x, inputs.batch, mask, recompute_layers=self._recompute_layers)
        losses, dx = self.decoder.compute_losses_and_grad(passed)
        torch.sum(losses * inputs.batch.label_weights, 0, out=inputs.loss)
        self.decoder.backward(passed, dx)

    def _capture(self, inputs: StaticInputs) -> torch.cuda.CUDAGraph:
        assert self._graph_stream is not None
        with self._graph_stream.capture() as graph:
            self._forward_backward(inputs)
        inputs.graph = graph
        return graph


def _derive_dropout_key(seed: int, rng_offset: int) -> int:
    """A key that no other pass of this run has: 31 bits of SplitMix64's finalizer (Steele et al. 2014)."""
    bits = (seed * 0x9E3779B97F4A7C15 + rng_offset + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1)
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return (bits ^ (bits >> 31)) >> 33
