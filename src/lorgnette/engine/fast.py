"""The fast engine: this project's decoder, forward and backward, on packed batches.

On CUDA a micro-batch of a given padded shape is captured as a CUDA graph; later ones replay it. At the shapes of
Qwen2-VL-2B a step launches 1,500 kernels, and the GPU runs them faster than the host can launch them one by one. The
host never waits for the device inside a step. The shapes of the steps to come are captured before the first step
(batch_shapes.py). Of another shape

    eager     1st micro-batch: compiles and loads what is still missing
    capture   2nd: record the kernels without running them, then replay
    replay    from then on: copy the batch into the static inputs, launch the graph

On a CPU the same code runs without padding and graphs, with the kernels' reference definitions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.engine.base import refuse_oom_of_shards
from lorgnette.engine.batch_shapes import BatchShape, ShapePlan, count_capture_tokens, plan_shapes
from lorgnette.engine.cuda_graphs import GraphStream, StaticInputs, allocate_levels
from lorgnette.engine.loss_scale import allocate_loss_scale
from lorgnette.features.image_features import Features
from lorgnette.kernels.dropout import Dropout
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.networks import Decoder, write_features
from lorgnette.planning.limits import MAX_GRAPHS_AHEAD
from lorgnette.types import PackedBatch

MAX_GRAPHS = 24
"""Captured graphs kept. They share one memory pool, but each holds its launches: some megabytes."""


class FastEngine:
    """Computes losses of packed batches; adds gradients to the `.grad` of the flat parameters."""

    def __init__(
        self,
        decoder: Decoder,
        adapter: FlatLoraParams,
        features: Features,
        *,
        dropout: float,
        group_by_image: bool = False,
        recompute_layers: int = 0,
    ) -> None:
        """group_by_image: micro-batches hold all captions of an image, which share its tokens and their dropout masks.

        recompute_layers: activation checkpointing of this many layers (planning/memory.py computes the number).
        """
        self.decoder, self.adapter, self.features = decoder, adapter, features
        self.device, self.dtype = decoder.embed_tokens.device, decoder.embed_tokens.dtype
        # Not in fp32: attention then runs its reference definition, which reads numbers back from the device.
        self._use_padding = self.device.type == "cuda" and self.dtype != torch.float32
        self.shards = decoder.shards
        if self.shards is not None:
            self.shards.load_factors = self._load_factors
        self._use_graphs = self._use_padding and not (self.shards and self.shards.is_collective)
        self.parameters, self.flat_grad = [adapter.values], adapter.flat_grad
        self.loss_scale = allocate_loss_scale(self.dtype, self.device)
        with self._update_weights():  # other ranks read them in their first pass
            self._weight_copy = adapter.attach(decoder)
        self.prefix_sharing = not dropout or group_by_image
        self.eval_prefix_sharing = True
        self._dropout, self._recompute_layers = dropout, recompute_layers
        self._static_inputs: dict[BatchShape, StaticInputs] = {}
        self._shape_plan = ShapePlan()
        self._num_loads = 0
        self._level_embeds = allocate_levels(decoder, 0)
        self._graph_stream = self._open_graph_stream()

    def backward(self, batch: PackedBatch) -> Float32[Tensor, ""]:
        """As Engine.backward. Raises torch.OutOfMemoryError, with all graphs dropped; if the layers are sharded,
        LorgnetteError."""
        with refuse_oom_of_shards(self.shards, len(batch.input_ids)), self._drop_graphs_on_oom():
            inputs = self._load_batch(batch)
            inputs.num_uses += 1
            if inputs.graph is None and self._use_graphs and inputs.num_uses > 1:
                self._capture(inputs)
            if inputs.graph is None:
                self._run_eager(inputs)
        if inputs.graph is not None:
            self._replay(inputs.graph)
        return inputs.loss.clone()

    @torch.no_grad()
    def warmup(self, batches: Sequence[PackedBatch], repeats: float = 1.0) -> None:
        """Run once as in training and once as in evaluation, without images, to compile and load every kernel.

        repeats: as of `capture_ahead`. Another shape may select other variants of a kernel.
        """
        num_layers = len(self.decoder.layers)
        for inputs in self._iter_shapes(batches, repeats):
            self._run_eager(inputs)
            self.decoder.compute_losses(self.decoder.forward(inputs.x, inputs.batch, None, recompute_layers=num_layers))

    def capture_ahead(self, batches: Sequence[PackedBatch], pool_bytes: int = 0, repeats: float = 1.0) -> None:
        """Capture the graphs that these batches will share, and replay each once to upload it to the device.

        pool_bytes: what micro-batches need beside weights and adapter, taken from the device first. repeats: how often
        the run has as many batches of these sizes; it sets the number of graphs (`plan_shapes`). Their steps then
        replay a graph from the first one on. All kernels must be loaded, as after `warmup` of a smaller model. When
        memory is short for that many, one is captured, and when it is short for one, none; the first step then splits
        its micro-batches.
        """
        for most in (MAX_GRAPHS_AHEAD, 1):
            if self._graph_stream is None:
                return
            with suppress(torch.OutOfMemoryError), self._drop_graphs_on_oom():
                self._graph_stream.reserve(pool_bytes)
                for inputs in self._iter_shapes(batches, repeats, most):
                    if self._use_graphs:
                        self._replay(self._capture(inputs))
                break
        self.flat_grad.zero_()

    @torch.no_grad()
    def compute_label_losses(self, batch: PackedBatch) -> Float32[Tensor, " R"]:
        """Cross-entropy of every label, in fp32, without dropout."""
        num_layers = len(self.decoder.layers)
        with refuse_oom_of_shards(self.shards, len(batch.input_ids)):
            inputs = self._load_batch(batch, is_training=False)
            with self._on_graph_stream():
                context = self.decoder.forward(inputs.x, inputs.batch, None, recompute_layers=num_layers)
                losses = self.decoder.compute_losses(context)
        # A copy: the next step writes over what was computed in the graphs' memory.
        return losses[: len(batch.targets)].clone()

    def compute_loss(self, batch: PackedBatch) -> Float32[Tensor, ""]:
        losses = self.compute_label_losses(batch)
        return (losses * torch.from_numpy(batch.label_weights).to(self.device, non_blocking=True)).sum()

    def sync_weights(self) -> None:
        """Copy the fp32 master weights into the decoder's matrices."""
        with self._update_weights():
            self._weight_copy()

    def _update_weights(self) -> AbstractContextManager[None]:
        """Change the decoder's matrices inside."""
        return nullcontext() if self.shards is None else self.shards.update()

    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """Put these factors in the place of the trained ones."""
        self.adapter.load_state_dict(state)
        if self.shards is not None:
            self.shards.send_factors(self.adapter.values.detach())
        self.sync_weights()

    def _load_factors(self, values: Float32[Tensor, " n"]) -> None:
        self.adapter.copy_from(values)
        self.sync_weights()

    @torch.no_grad()
    def _load_batch(self, batch: PackedBatch, *, is_training: bool = True) -> StaticInputs:
        """Copy the batch into static inputs and write its embeddings."""
        # Integers: one host-to-device copy.
        exact = BatchShape.from_batch(batch)
        if self._use_padding:
            shape = self._shape_plan.select(exact) if is_training else exact.pad()
            inputs = self._static_inputs.get(shape) or self._allocate_inputs(shape)
            self._num_loads += 1
            inputs.last_use = self._num_loads
        else:
            inputs = StaticInputs(exact, self.decoder)
        inputs.copy_from(batch)

        # Text embeddings of all tokens, padding included, in place.
        torch.index_select(self.decoder.embed_tokens, 0, inputs.input_ids, out=inputs.x)

        # Image features replace the embeddings of the image placeholder tokens.
        level_embeds = inputs.batch.level_embeds.zero_()
        if batch.grids:
            indices = inputs.feature_indices[: (count := len(batch.image_token_indices))]
            tokens = inputs.image_token_indices[:count]
            write_features(self.features.gather(batch.grids), indices, tokens, inputs.x, level_embeds)
        return inputs

    def _iter_shapes(
        self, batches: Sequence[PackedBatch], repeats: float, most: int = MAX_GRAPHS_AHEAD
    ) -> Iterator[StaticInputs]:
        """New static inputs for the shapes that are planned for these batches, the largest first.

        Each is filled with the largest batch that it covers; its embeddings stay zero. most: the number of shapes.
        """
        sizes = [BatchShape.from_batch(batch) for batch in batches]
        self._shape_plan = plan_shapes(sizes, count_capture_tokens(self.decoder.config), repeats, most)
        for shape in self._shape_plan.shapes:
            inputs = self._allocate_inputs(shape)
            covered = (i for i, size in enumerate(sizes) if shape.covers(size))
            inputs.copy_from(batches[max(covered, key=lambda i: sizes[i].tokens)])
            yield inputs

    def _allocate_inputs(self, shape: BatchShape) -> StaticInputs:
        """New static inputs, where there are `MAX_GRAPHS` in place of those that were not used for longest."""
        inputs = StaticInputs(shape, self.decoder, self._share_levels(shape.tokens))
        if len(self._static_inputs) == MAX_GRAPHS:
            self._static_inputs.pop(min(self._static_inputs, key=lambda shape: self._static_inputs[shape].last_use))
        self._static_inputs[shape] = inputs
        return inputs

    def _share_levels(self, tokens: int) -> Float[Tensor, "K T C"]:
        """Memory for deepstack's features, one row per token. All shapes share it: one micro-batch runs at a time."""
        levels = self._level_embeds
        if levels.shape[1] < tokens:
            levels = self._level_embeds = allocate_levels(self.decoder, tokens)
        num_levels, _, hidden = levels.shape
        return levels.flatten()[: num_levels * tokens * hidden].view(num_levels, tokens, hidden)

    @contextmanager
    def _drop_graphs_on_oom(self) -> Iterator[None]:
        """Free all graphs and their memory when memory runs out, so that smaller micro-batches fit.

        torch does not capture into a pool again once all of its graphs are gone, so there is a new one.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            self.drop_graphs()
            raise

    def drop_graphs(self) -> None:
        """Free all graphs and give their memory back to the GPU. The next micro-batches capture new ones."""
        self._static_inputs.clear()
        self._shape_plan = ShapePlan()
        self._level_embeds = allocate_levels(self.decoder, 0)
        self._graph_stream = self._open_graph_stream()
        torch.cuda.empty_cache()

    def _open_graph_stream(self) -> GraphStream | None:
        return GraphStream(self.device, self.decoder.allocate_workspaces) if self._use_padding else None

    def _on_graph_stream(self) -> AbstractContextManager[None]:
        """Run with the memory of the graphs, if there are any."""
        return nullcontext() if self._graph_stream is None else self._graph_stream.eager()

    def _run_eager(self, inputs: StaticInputs) -> None:
        with self._on_graph_stream():
            self._forward_backward(inputs)

    def _capture(self, inputs: StaticInputs) -> torch.cuda.CUDAGraph:
        assert self._graph_stream is not None
        if self.shards is not None:
            self.shards.discard_gathers()  # each replay begins with the first layer
        try:
            with self._graph_stream.capture() as graph:
                self._forward_backward(inputs)
        finally:
            if self.shards is not None:
                self.shards.discard_capture()
        inputs.graph = graph
        return graph

    def _replay(self, graph: torch.cuda.CUDAGraph) -> None:
        graph.replay()
        if self.shards is not None:
            self.shards.discard_gathers()

    @torch.no_grad()
    def _forward_backward(self, inputs: StaticInputs) -> None:
        """From `inputs.x` to `inputs.loss` and the gradients; reads nothing back, so that it can be captured."""
        dropout = Dropout(inputs.dropout_keys, self._dropout) if self._dropout else None
        context = self.decoder.forward(inputs.x, inputs.batch, dropout, recompute_layers=self._recompute_layers)
        losses, dx = self.decoder.compute_losses_and_grad(context, self.loss_scale)
        torch.sum(losses * inputs.batch.label_weights, 0, out=inputs.loss)
        self.decoder.backward(context, dx)
