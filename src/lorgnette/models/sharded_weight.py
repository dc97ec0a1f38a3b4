"""Frozen matrices that are cut by rows over the ranks: for a model that is larger than a GPU.

Each rank keeps some rows of every layer's [W | B] (models/lora_linear.py). The whole matrices of a layer are gathered
right before its products, one layer ahead, into one of two sets of buffers:

    rank 0   rows 0 … O/2 of layer i + 1 ─┐
                                          ├─ all-gather ─▶ buffers of odd layers        meanwhile the products of
    rank 1   rows O/2 … O of layer i + 1 ─┘                                             layer i read the even ones

A forward pass walks up through the layers, a backward pass down. The two layers gathered last stay, so the end of the
one is the beginning of the other. Nothing is rounded or added: a gathered matrix has the bits of a whole one.

B is part of the rows. An optimizer step changes it, so all layers are gathered anew afterwards.

A gather waits for all ranks. So they run equally many passes (`run_empty_pass`), or one leads and the others follow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float, Float32
from torch import Tensor

from lorgnette.distributed import World

if TYPE_CHECKING:
    from torch.distributed import Work


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
    def kept(self) -> Float[Tensor, "_ IR"]:
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
        self._running: list[list[Work]] = [[], []]
        self._current: int | None = None
        self._is_leading = False
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

    def discard_gathered(self) -> None:
        """Gather every layer anew, because this rank's rows, and those of all others, change now."""
        for i in range(2):
            self._wait(i)
        self._gathered, self._current = [None, None], None

    def run_empty_pass(self, *, backward: bool) -> None:
        """Take part in the gathers of the others' forward pass, and of its backward pass."""
        layers = range(len(self._layers))
        for layer in [*layers, *reversed(layers)] if backward else layers:
            self._enter_layer(layer)

    @contextmanager
    def lead(self) -> Iterator[None]:
        """Run passes on rank 0 while the other ranks `follow`."""
        self._is_leading = True
        try:
            yield
        finally:
            self._is_leading = False
            self.world.broadcast_object(None)

    def follow(self) -> None:
        """Take part in the gathers of rank 0, until its `lead` ends."""
        while (message := self.world.broadcast_object(None)) is not None:
            if isinstance(message, Tensor):
                self.load_factors(message)
            else:
                self._enter_layer(message)

    def send_factors(self, values: Float32[Tensor, " n"]) -> None:
        """Give the ranks that follow the LoRA factors with which this rank goes on."""
        if self._is_leading:
            self.world.broadcast_object(values.cpu())

    def _enter_layer(self, layer: int) -> None:
        """Wait for a layer's matrices, and begin to gather those of the layer that comes next."""
        if layer == self._current:
            return
        if self._is_leading:
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
        self._running[i] = [
            self.world.begin_all_gather(self._view_buffer(layer, place), weight.local)
            for place, weight in enumerate(self._layers[layer])
        ]

    def _wait(self, i: int) -> None:
        """On CUDA the current stream waits, the host does not."""
        for work in self._running[i]:
            work.wait()
        self._running[i] = []

    def _view_buffer(self, layer: int, place: int) -> Tensor:
        num_rows, ext_features = self._layers[layer][place].local.shape
        size = self.world.size * num_rows * ext_features
        return self._buffers[layer % 2][place][:size].view(-1, ext_features)
