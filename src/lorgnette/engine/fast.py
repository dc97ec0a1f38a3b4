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
from lorgnette.kernels.attention_plan import Sight, cut, cut_sizes
from lorgnette.kernels.dropout import Mask
from lorgnette.kernels.gather_sum import Copies, copies_of
from lorgnette.lora.flat_params import FlatAdapter
from lorgnette.models.qwen2_vl.text_decoder import Decoder, Rows
from lorgnette.processing.packing import Share
from lorgnette.types import PackedBatch

MOST_RECORDED = 24
"""Graphs kept. Their memory is one pool, but each holds its launches: some megabytes."""


@dataclass(frozen=True, slots=True)
class Room:
    """The sizes a pass is padded to: rows, rows of the last layer, labels."""

    rows: int
    last: int
    labels: int

    @classmethod
    def of(cls, batch: PackedBatch) -> "Room":
        """The batch's own sizes."""
        return cls(len(batch.tokens), len(np.unique(batch.label_rows)), len(batch.targets))

    @classmethod
    def around(cls, batches: Sequence[PackedBatch]) -> "Room":
        """For the largest of these batches and those of nearly its size, so that one recording serves them all."""
        rooms = [cls.of(batch) for batch in batches]
        most = max(room.rows for room in rooms)
        alike = [room for room in rooms if room.rows > 0.9 * most]
        return cls(most, max(room.last for room in alike), max(room.labels for room in alike)).padded()

    def padded(self) -> "Room":
        """Room for a batch of these sizes and a little more: for a row at least that is none of the batch's, and for
        fewer rows in the last layer than in the others."""
        rows = _rounded(self.rows + 1, 64)
        return Room(rows, min(_rounded(self.last, 4), rows - 1), _rounded(self.labels, 2))

    def holds(self, batch: "Room") -> bool:
        """Whether a batch of those sizes fits without much waste."""
        fits = self.rows > batch.rows and self.last >= batch.last and self.labels >= batch.labels
        return fits and self.rows - batch.rows <= batch.rows // 24 + 32


def _rounded(count: int, parts: int) -> int:
    """Up to the next of `parts` even steps between two powers of two (of 16 at the least)."""
    step = max(16, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


class Station:
    """A room's tensors on the device, filled anew for every pass: one copy of everything that is a number.

    x: [T, C] embedded rows; loss: what the pass gave; graph: its recording, once there is one.
    """

    def __init__(self, room: Room, decoder: Decoder) -> None:
        device = decoder.embedding.device
        self.room = room
        self._group = decoder.shape.heads // decoder.shape.kv_heads
        self.x = torch.zeros(room.rows, decoder.shape.hidden, dtype=decoder.embedding.dtype, device=device)
        self.loss = torch.zeros((), device=device)
        self.losses: Float32[Tensor, " R"] = torch.zeros(room.labels, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.passes = 0
        self._sizes = {name: len(values) for name, values in self._columns(None).items()}
        self._numbers = torch.zeros(sum(self._sizes.values()), dtype=torch.int32, device=device)
        parts = dict(zip(self._sizes, torch.split(self._numbers, list(self._sizes.values())), strict=True))
        self.tokens, self.image_rows, self.feature_rows = parts["tokens"], parts["image_rows"], parts["feature_rows"]
        self.key = parts["key"][0]
        every = torch.arange(room.rows, dtype=torch.int32, device=device)
        self.rows = Rows(
            positions=parts["positions"].view(3, -1),
            sight=Sight.among(parts, "", every),
            last_sight=Sight.among(parts, "last_", parts["last_rows"]),
            label_rows=parts["label_rows"],
            label_copies=Copies(parts["label_places"], parts["label_copies"]),
            targets=parts["targets"],
            weights=parts["weights"].view(torch.float32),
        )

    def fill(self, batch: PackedBatch, key: int) -> None:
        """Send the batch. key: of this pass's dropout."""
        columns = self._columns(batch)
        columns["key"][0] = key
        host = torch.from_numpy(np.concatenate(list(columns.values())))
        if self._numbers.is_cuda:
            host = host.pin_memory()
        self._numbers.copy_(host, non_blocking=True)

    def _columns(self, batch: PackedBatch | None) -> dict[str, Int32[np.ndarray, " n"]]:
        """Every number of a pass, padded to the room; None: zeros of the same sizes."""
        (T, M, R), group = (self.room.rows, self.room.last, self.room.labels), self._group
        sizes = {
            "tokens": T, "positions": 3 * T, "ends": T, "last_rows": M, "label_rows": R, "label_places": R,
            "label_copies": M + 1, "targets": R, "weights": R, "image_rows": T, "feature_rows": T, "key": 1,
            **cut_sizes("", T, T, group), **cut_sizes("last_", T, M, group),
        }  # fmt: skip
        made = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        if batch is None:
            return made
        last = np.unique(batch.label_rows)
        label_rows = np.searchsorted(last, batch.label_rows).astype(np.int32)
        filled = {
            "tokens": batch.tokens, "targets": batch.targets, "image_rows": batch.image_rows, "ends": batch.ends,
            "feature_rows": batch.feature_rows, "label_rows": label_rows, "last_rows": last,
        }  # fmt: skip
        for name, values in filled.items():
            made[name][: len(values)] = values
        made["last_rows"][len(last) :] = T - 1  # sees nothing
        made["positions"].reshape(3, T)[:, : len(batch.tokens)] = batch.positions
        made["weights"].view(np.float32)[: len(batch.weights)] = batch.weights
        # What padding took is no row's copy: hundreds of one row would be added up while all others wait.
        made["label_places"][: len(label_rows)], made["label_copies"][:] = copies_of(label_rows, M)
        made |= cut("", np.arange(T, dtype=np.int32), made["ends"], group)
        return made | cut("last_", made["last_rows"], made["ends"], group)


class Lane:
    """A stream of its own with a pool of memory for all passes, recorded or not: what one leaves is the next one's,
    where on two streams each would keep its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._memory = device, torch.cuda.MemPool()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What is launched here runs behind what was launched before, and before what is launched next."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._memory):
                yield
        finally:
            here.wait_stream(self._stream)

    @contextmanager
    def recorded(self) -> Iterator[torch.cuda.CUDAGraph]:
        """What is launched here runs whenever the graph is replayed. The host does not wait, as torch.cuda.graph would
        have it do; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        pool: Any = self._memory.id  # torch's stubs know the other kind of handle alone
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
        adapter: FlatAdapter,
        features: Features,
        *,
        dropout: float,
        seed: int,
        grouped: bool = False,
        again: int = 0,
    ) -> None:
        """grouped: passes hold all captions of a picture, which share its rows under dropout too, masks included;
        again: so many layers are run a second time in the backward pass instead of being kept (memory.py says how many
        must)."""
        self.decoder, self.adapter, self.features = decoder, adapter, features
        self.device = decoder.embedding.device
        self.parameters = [adapter.values]
        self._spread = adapter.attach(decoder)
        self.share: Share = "none" if dropout and not grouped else "tree"
        self.share_in_evaluation: Share = "tree"
        self._dropout, self._seed, self._again = dropout, seed, again
        self._stations: dict[Room, Station] = {}
        self._lane = Lane(self.device) if self._recording else None

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embedding.dtype

    @property
    def _recording(self) -> bool:
        """In fp32, which the attention kernels are not for, its plain definition asks the device for numbers."""
        return self.device.type == "cuda" and self.dtype != torch.float32

    def backward(self, batch: PackedBatch, draw: int) -> Float32[Tensor, ""]:
        """Σ weights · cross-entropy, on the device; its gradient is added up. draw: what dropout's masks are drawn
        from."""
        with self._forgetting_if_full():
            station = self._entered(batch, draw)
            station.passes += 1
            if station.graph is None and self._recording and station.passes > 1:
                self._record(station)
            if station.graph is None:
                self._pass(station)
        if station.graph is not None:
            station.graph.replay()
        return station.loss.clone()

    @torch.no_grad()
    def warm(self, batches: Sequence[PackedBatch]) -> None:
        """Run a pass on no pictures, in the room that these batches will share, and once more as in evaluation: every
        kernel is there then."""
        station = self._rehearsed(batches)
        self._pass(station)
        self.decoder.losses(self.decoder.forward(station.x, station.rows, None, again=len(self.decoder.layers)))

    def rehearse(self, batches: Sequence[PackedBatch]) -> None:
        """Record a pass in the room that these batches will share, and play it once for nothing, which brings it to the
        device: their steps are played back from the first.

        The kernels must be there, as after `warm` of a smaller model. Where memory does not hold a pass, nothing is
        recorded: the step that asks for it will be cut."""
        if not self._recording:
            return
        with suppress(torch.OutOfMemoryError), self._forgetting_if_full():
            self._record(self._rehearsed(batches)).replay()
        assert self.adapter.values.grad is not None
        self.adapter.values.grad.zero_()

    def _rehearsed(self, batches: Sequence[PackedBatch]) -> Station:
        station = self._made(Room.around(batches))
        station.fill(max(batches, key=lambda batch: len(batch.tokens)), 0)
        return station

    @torch.no_grad()
    def label_losses(self, batch: PackedBatch) -> Float32[Tensor, " R"]:
        """Cross-entropy of every label, in fp32, without dropout."""
        station = self._entered(batch)
        passed = self.decoder.forward(station.x, station.rows, None, again=len(self.decoder.layers))
        return self.decoder.losses(passed)[: len(batch.targets)]

    def loss(self, batch: PackedBatch) -> Float32[Tensor, ""]:
        """Σ weights · cross-entropy, without dropout and gradient."""
        losses = self.label_losses(batch)
        return (losses * torch.from_numpy(batch.weights).to(self.device, non_blocking=True)).sum()

    def updated(self) -> None:
        """The optimizer has changed the masters: copy them to where they are computed with."""
        self._spread()

    @torch.no_grad()
    def _entered(self, batch: PackedBatch, draw: int = 0) -> Station:
        """The batch on the device, its rows embedded."""
        station = self._station(batch)
        station.fill(batch, _drawn(self._seed, draw))
        torch.index_select(self.decoder.embedding, 0, station.tokens, out=station.x)
        if batch.grids:
            count = len(batch.image_rows)
            features = self.features.of(batch.grids).to(station.x.dtype)
            rows = features.index_select(0, station.feature_rows[:count])
            station.x.index_copy_(0, station.image_rows[:count].long(), rows)
        return station

    def _station(self, batch: PackedBatch) -> Station:
        exact = Room.of(batch)
        if not self._recording:
            return Station(exact, self.decoder)
        for room, station in self._stations.items():
            if room.holds(exact):
                return station
        return self._made(exact.padded())

    def _made(self, room: Room) -> Station:
        made = Station(room, self.decoder)
        if len(self._stations) == MOST_RECORDED:
            self._stations.pop(next(iter(self._stations)))
        self._stations[room] = made
        return made

    @contextmanager
    def _forgetting_if_full(self) -> Iterator[None]:
        """Where memory runs out, what was recorded is given up with what it holds, for what will be cut smaller. A
        pool whose recordings are all gone takes no other: there is a new one."""
        try:
            yield
        except torch.OutOfMemoryError:
            self._stations.clear()
            self._lane = Lane(self.device) if self._recording else None
            raise

    def _pass(self, station: Station) -> None:
        with nullcontext() if self._lane is None else self._lane.entered():
            self._computed(station)

    @torch.no_grad()
    def _computed(self, station: Station) -> None:
        mask = Mask(station.key, self._dropout) if self._dropout else None
        passed = self.decoder.forward(station.x, station.rows, mask, again=self._again)
        losses, dx = self.decoder.losses_and_gradient(passed)
        torch.sum(losses * station.rows.weights, 0, out=station.loss)
        self.decoder.backward(passed, dx)

    def _record(self, station: Station) -> torch.cuda.CUDAGraph:
        assert self._lane is not None
        with self._lane.recorded() as graph:
            self._computed(station)
        station.graph = graph
        return graph


def _drawn(seed: int, number: int) -> int:
    """A key that no other pass of this run has: 31 bits of SplitMix64's finalizer (Steele et al. 2014)."""
    bits = (seed * 0x9E3779B97F4A7C15 + number + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1)
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return (bits ^ (bits >> 31)) >> 33
