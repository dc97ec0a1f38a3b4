"""Capture and replay of micro-batches as CUDA graphs: static inputs, and the stream with its memory.

A graph has fixed sizes and fixed addresses, so every micro-batch is padded to a `BatchShape` (batch_shapes.py) and
copied into the `StaticInputs` of that shape. Padding tokens are hidden from every query, and their labels weigh
nothing.

Knows nothing about the decoder's arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorgnette.device import capture_graph, join_arrays, pause_garbage_collection, split_array
from lorgnette.engine.batch_shapes import BatchShape
from lorgnette.kernels.attention_plan import AttentionPlan, plan_attention
from lorgnette.kernels.gather_sum import GatherSegments, build_segments
from lorgnette.kernels.tiles import select_tiles
from lorgnette.models.networks import Decoder, DecoderInputs
from lorgnette.types import PackedBatch


class StaticInputs:
    """Static input and output tensors for one `BatchShape`.

    All integer inputs live in one int32 buffer and arrive in one host-to-device copy. The buffer's parts are views, so
    a captured graph reads each new batch at the same addresses.

    x: [T, C] embeddings, as `batch.level_embeds` not in the buffer; loss: the output; graph: the captured forward and
    backward, once there is one. last_use: the number of the micro-batch that used them last.
    """

    def __init__(self, shape: BatchShape, decoder: Decoder, level_embeds: Float[Tensor, "K T C"] | None = None) -> None:
        """level_embeds: memory that other shapes use too; None: memory of its own."""
        config, device = decoder.config, decoder.embed_tokens.device
        self.shape = shape
        self.heads_per_kv, self.tiles = config.num_heads // config.num_kv_heads, select_tiles(device)
        self.x = torch.zeros(shape.tokens, config.hidden_size, dtype=decoder.embed_tokens.dtype, device=device)
        self.loss = torch.zeros((), device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.num_uses = self.last_use = 0
        arrays = self._flatten(None)
        self._buffer = torch.zeros(len(join_arrays(arrays.values())), dtype=torch.int32, device=device)
        parts = dict(zip(arrays, split_array(self._buffer, map(len, arrays.values())), strict=True))
        self.input_ids = parts["input_ids"]
        self.image_token_indices, self.feature_indices = parts["image_token_indices"], parts["feature_indices"]
        self.dropout_keys = parts["dropout_keys"]
        all_tokens = torch.arange(shape.tokens, dtype=torch.int32, device=device)
        self.batch = DecoderInputs(
            position_ids=parts["position_ids"].view(3, -1),
            attention_plan=AttentionPlan.from_parts(parts, "", all_tokens, self.tiles),
            last_attention_plan=AttentionPlan.from_parts(parts, "last_", parts["last_query_indices"], self.tiles),
            label_indices=parts["label_indices"],
            label_segments=GatherSegments(parts["segment_indices"], parts["segment_offsets"]),
            targets=parts["targets"],
            label_weights=parts["label_weights"].view(torch.float32),
            level_embeds=allocate_levels(decoder, shape.tokens) if level_embeds is None else level_embeds,
        )

    def copy_from(self, batch: PackedBatch) -> None:
        """Copy the batch to the device, without waiting for it."""
        host = torch.from_numpy(join_arrays(self._flatten(batch).values()))
        if self._buffer.is_cuda:
            host = host.pin_memory()
        self._buffer.copy_(host, non_blocking=True)

    def _flatten(self, batch: PackedBatch | None) -> dict[str, Int32[np.ndarray, " n"]]:
        """The parts of the buffer in order, padded to the shape; zeros of the same sizes without a batch."""
        (T, M, R), group = (self.shape.tokens, self.shape.last_layer_tokens, self.shape.labels), self.heads_per_kv
        sizes = {
            "input_ids": T, "position_ids": 3 * T, "visible_until": T, "last_query_indices": M, "label_indices": R,
            "segment_indices": R, "segment_offsets": M + 1, "targets": R, "label_weights": R,
            "image_token_indices": T, "feature_indices": T, "dropout_keys": T,
        }  # fmt: skip
        arrays = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        if batch is not None:
            # Integers of the batch, each at the beginning of its part. `visible_until` is 0 for padding: hidden.
            last_queries = np.unique(batch.label_indices)
            label_indices = np.searchsorted(last_queries, batch.label_indices).astype(np.int32)
            values = {
                "input_ids": batch.input_ids, "targets": batch.targets, "visible_until": batch.visible_until,
                "image_token_indices": batch.image_token_indices, "feature_indices": batch.feature_indices,
                "label_indices": label_indices, "last_query_indices": last_queries, "dropout_keys": batch.dropout_keys,
            }  # fmt: skip
            for name, array in values.items():
                arrays[name][: len(array)] = array
            arrays["position_ids"].reshape(3, T)[:, : len(batch.input_ids)] = batch.position_ids
            arrays["label_weights"].view(np.float32)[: len(batch.label_weights)] = batch.label_weights

            # Padding queries of the last layer point at the last token, which is padding and sees nothing.
            arrays["last_query_indices"][len(last_queries) :] = T - 1

            # Padding labels belong to no segment: else hundreds of them are added to one row while all others wait.
            segment_indices, arrays["segment_offsets"][:] = build_segments(label_indices, M)
            arrays["segment_indices"][: len(label_indices)] = segment_indices

        # Work lists of the attention kernels, of all layers but the last and of the last one. Their sizes depend on T
        # and M alone.
        for prefix, queries in (("", np.arange(T, dtype=np.int32)), ("last_", arrays["last_query_indices"])):
            arrays |= plan_attention(prefix, queries, arrays["visible_until"], group, self.tiles)
        return arrays


def allocate_levels(decoder: Decoder, tokens: int) -> Float[Tensor, "K T C"]:
    """Zeros for deepstack's features; K is 0 without deepstack."""
    config = decoder.config
    return decoder.embed_tokens.new_zeros(config.num_deepstack_levels, tokens, config.hidden_size)


class GraphStream:
    """A side stream with one private memory pool.

    Captured and eager micro-batches share it, so memory freed by one is reused by the next.
    """

    def __init__(self, device: torch.device, allocate_workspaces: Callable[[], None]) -> None:
        """allocate_workspaces: Decoder.allocate_workspaces. It runs here before the pool is used, so that the pool can
        be given back."""
        self._device, self._pool = device, torch.cuda.MemPool()
        self._allocate_workspaces = allocate_workspaces
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Run on this stream: after everything launched before, and before everything launched next."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                self._allocate_workspaces()
                with torch.cuda.use_mem_pool(self._pool), pause_garbage_collection():
                    yield
        finally:
            current.wait_stream(self._stream)

    def reserve(self, size: int) -> None:
        """Take `size` bytes from the device in one piece, which all micro-batches then divide among them.

        A pool that grows tensor by tensor has gaps that fit no tensor. Raises torch.OutOfMemoryError.
        """
        with self.eager():
            torch.empty(size, dtype=torch.uint8, device=self._device)

    def capture(self) -> AbstractContextManager[torch.cuda.CUDAGraph]:
        """Capture instead of running, as `capture_graph`."""
        return capture_graph(self._stream, self._pool.id, self._allocate_workspaces)
