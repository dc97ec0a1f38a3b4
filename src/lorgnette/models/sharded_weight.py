"""Frozen matrices that are cut by rows over the ranks: for a model that is larger than a GPU.

Each rank keeps some rows of every layer's [W | B] (models/lora_linear.py). The whole matrices of a layer are gathered
right before its products, one layer ahead, into one of two sets of buffers:

    rank 0   rows 0 … O/2 of layer i + 1 ─┐
                                          ├─▶ buffers of odd layers        meanwhile the products of layer i
    rank 1   rows O/2 … O of layer i + 1 ─┘                                read the buffers of even ones

A forward pass walks up through the layers, a backward pass down. The two layers gathered last stay, so the end of the
one is the beginning of the other. Nothing is rounded or added: a gathered matrix has the bits of a whole one.

B is part of the rows. An optimizer step changes it, so all layers are gathered anew afterwards.

The GPUs of one machine copy each other's rows, by copy engines, which take nothing from the products. No pass waits for
another rank; only an update does, so that nobody reads rows while they change. Where GPUs cannot read each other, all
ranks gather together (NCCL; gloo on CPUs). Each pass then waits for all ranks: they run equally many
(`run_empty_pass`), or one leads and the others follow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from lorgnette.distributed import World


@dataclass(frozen=True, slots=True)
class ShardedWeight:
    """[W | B], of which this rank keeps some rows.

    local: these rows; some ranks have fewer, and then unused ones behind them. rows: their numbers. shape: (O, I + R).
    gather: returns the whole matrix, in memory that the layer after the next overwrites.
    """

    local: Float[Tensor, "_ IR"]
    rows: range
    shape: tuple[int, int]
    gather: Callable[[], Float[Tensor, "O IR"]]

    @property
    def own_rows(self) -> Float[Tensor, "_ IR"]:
        """This rank's rows alone."""
        return self.local[: len(self.rows)]


class ShardedLayers:
    """The matrices of all layers, and the buffers in which two layers are whole."""

    def __init__(self, world: World, allocate: Callable[..., Tensor]) -> None:
        """allocate: returns uninitialized memory of a shape, on the device and in the dtype of the weights."""
        self.world, self._allocate = world, allocate
        self._layers: list[list[ShardedWeight]] = []
        self._buffers: tuple[list[Tensor], list[Tensor]] = [], []
        self._gathered: list[int | None] = [None, None]
        """The layer that each set of buffers holds, or will hold when its gathers are done."""
        self._running: list[list[Any]] = [[], []]
        self._current: int | None = None
        self._peer_rows: list[list[list[Tensor]]] | None = None
        """By layer, matrix and rank, if this rank can read them."""
        self._copy_stream: torch.cuda.Stream | None = None
        self.is_leading = False
        self.load_factors: Callable[[Float32[Tensor, " n"]], None] = lambda values: None
        """Puts other LoRA factors into this rank's engine."""

    def allocate_weight(self, layer: int, out_features: int, ext_features: int) -> ShardedWeight:
        """Memory for this rank's rows of the next matrix of a layer. Layers come in order, their matrices too."""
        if layer == len(self._layers):
            self._layers.append([])
        place, num_rows = len(self._layers[layer]), -(-out_features // self.world.size)
        for buffers in self._buffers:
            size = num_rows * self.world.size * ext_features
            if place == len(buffers):
                buffers.append(self._allocate(size))
            elif len(buffers[place]) < size:
                buffers[place] = self._allocate(size)
        start, end = (min(rank * num_rows, out_features) for rank in (self.world.rank, self.world.rank + 1))

        def gather() -> Tensor:
            self._enter_layer(layer)
            return self._view_buffer(layer, place)[:out_features]

        local = self._allocate(num_rows, ext_features)
        weight = ShardedWeight(local, range(start, end), (out_features, ext_features), gather)
        self._layers[layer].append(weight)
        return weight

    def connect(self) -> None:
        """Let the GPUs of one machine read each other's rows, if they can. All ranks call this, with loaded weights."""
        weights = [weight.local for layer in self._layers for weight in layer]
        if not weights[0].is_cuda or self.world.local_size < self.world.size:
            return
        torch.cuda.synchronize()  # what is loaded is there before another rank reads it
        shared = self.world.gather_objects(_share_tensors(weights))
        peers = [weights if rank == self.world.rank else _map_tensors(shared[rank]) for rank in range(len(shared))]
        if not all(self.world.gather_objects(None not in peers)):
            return
        by_weight = zip(*(rows for rows in peers if rows is not None), strict=True)
        self.use_peer_rows([[list(next(by_weight)) for _ in layer] for layer in self._layers])

    def use_peer_rows(self, rows: list[list[list[Tensor]]]) -> None:
        """Copy the rows of all ranks from here. rows: by layer, matrix and rank, with unused ones behind them."""
        self._peer_rows = rows
        if rows[0][0][0].is_cuda:
            self._copy_stream = torch.cuda.Stream(rows[0][0][0].device)  # type: ignore[no-untyped-call]

    @property
    def is_collective(self) -> bool:
        """Whether a pass waits for all ranks."""
        return self._peer_rows is None

    def discard_gathers(self) -> None:
        """Gather every layer anew."""
        for i in range(2):
            self._wait(i)
        self._gathered, self._current = [None, None], None

    def discard_capture(self) -> None:
        """After a capture, also one that failed: none of its copies has run."""
        self._running, self._gathered, self._current = [[], []], [None, None], None

    @contextmanager
    def update(self) -> Iterator[None]:
        """Change this rank's rows, while all others change theirs."""
        self.discard_gathers()
        self._wait_for_ranks()  # that still read these rows
        yield
        self._wait_for_ranks()

    def run_empty_pass(self, *, backward: bool) -> None:
        """Take part in the gathers of the others' forward pass, and of its backward pass, if they wait for that."""
        if not self.is_collective:
            return
        layers = range(len(self._layers))
        for layer in [*layers, *reversed(layers)] if backward else layers:
            self._enter_layer(layer)

    def follow(self) -> None:
        """Take part in the gathers of rank 0, until it sends None."""
        while (message := self.world.broadcast_object(None)) is not None:
            if isinstance(message, Tensor):
                self.load_factors(message)
            else:
                self._enter_layer(message)

    def send_factors(self, values: Float32[Tensor, " n"]) -> None:
        """Give the ranks that follow the LoRA factors with which this rank goes on."""
        if self.is_leading:
            self.world.broadcast_object(values.cpu())

    def _enter_layer(self, layer: int) -> None:
        """Wait for a layer's matrices, and begin to gather those of the layer that comes next."""
        if layer == self._current:
            return
        if self.is_leading and self.is_collective:
            self.world.broadcast_object(layer)
        # The first layer is followed by the second. So is the bottom of a backward pass: by the next forward pass.
        is_upward = layer == 0 or self._current is None or layer > self._current
        self._begin_gather(layer)
        self._wait(layer % 2)
        self._current = layer
        following = layer + 1 if is_upward else layer - 1
        if following < len(self._layers):
            self._begin_gather(following)

    def _begin_gather(self, layer: int) -> None:
        """On CUDA the gather waits for all that is launched, so the products that read these buffers are over."""
        i = layer % 2
        if self._gathered[i] == layer:
            return
        self._wait(i)
        self._gathered[i] = layer
        wholes = [self._view_buffer(layer, place) for place in range(len(self._layers[layer]))]
        if self._peer_rows is not None:
            self._running[i] = self._copy_rows(wholes, self._peer_rows[layer])
        else:
            parts = [weight.local for weight in self._layers[layer]]
            self._running[i] = [self.world.begin_all_gather(*pair) for pair in zip(wholes, parts, strict=True)]

    def _copy_rows(self, wholes: list[Tensor], rows: list[list[Tensor]]) -> list[Any]:
        """Copy the rows of all ranks beside the products. Rows that are contiguous need no kernel."""
        if self._copy_stream is not None:
            self._copy_stream.wait_stream(torch.cuda.current_stream(self._copy_stream.device))
        with torch.cuda.stream(self._copy_stream):
            for whole, parts in zip(wholes, rows, strict=True):
                for into, part in zip(whole.chunk(len(parts)), parts, strict=True):
                    into.copy_(part, non_blocking=True)
        return [] if self._copy_stream is None else [self._copy_stream.record_event()]

    def _wait_for_ranks(self) -> None:
        """Where they read each other's memory: on CUDA the stream waits until all have launched as much; the host does
        not."""
        if self._peer_rows is not None:
            self.world.all_reduce(self._peer_rows[0][0][0].new_zeros(1))

    def _wait(self, i: int) -> None:
        """On CUDA the current stream waits, the host does not."""
        for work in self._running[i]:
            work.wait()
        self._running[i] = []

    def _view_buffer(self, layer: int, place: int) -> Tensor:
        num_rows, ext_features = self._layers[layer][place].local.shape
        size = self.world.size * num_rows * ext_features
        return self._buffers[layer % 2][place][:size].view(-1, ext_features)


def _share_tensors(tensors: list[Tensor]) -> list[Any] | None:
    """What another process needs to map the memory of CUDA tensors; None if that is not possible."""
    try:
        return [reduce_tensor(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def _map_tensors(shared: list[Any] | None) -> list[Tensor] | None:
    """The tensors of another process; None if this GPU cannot read them."""
    try:
        return None if shared is None else [rebuild(*args) for rebuild, args in shared]
    except RuntimeError:
        return None
