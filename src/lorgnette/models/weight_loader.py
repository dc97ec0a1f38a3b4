"""A checkpoint's weights, read from its safetensors files directly to where they are used.

    page cache ──read────▶ pinned staging ──copy engine──▶ the destination on the device      (CUDA)
    page cache ──mmap────▶ cast ─────────────────────────▶ the destination                    (CPU)

A destination may be a slice of a larger matrix: fused matrices are written in place, and no weight is on the device
twice. Weights have transformers' current names.

An NF4 matrix as destination takes what a checkpoint stores in NF4 byte for byte. What is stored otherwise is quantized
as it arrives, some rows at a time. A plain destination of NF4 weights, such as a tower's, gets their numbers.

Of a weight that is cut by rows each rank reads its rows alone: the ranks of a machine together read each byte once.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorgnette.device import PINNED_PIECE_BYTES
from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import read_tensor_entries
from lorgnette.io.read_at import read_at
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4, quantize_absmax
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD, convert_weight_name
from lorgnette.models.model_config import NUM_READERS, has_tied_embeddings
from lorgnette.models.nf4_weights import (
    MAX_STATE_BYTES,
    Nf4State,
    RowsToQuantize,
    allocate_absmax,
    list_parts,
    parse_nf4_state,
)
from lorgnette.models.quantization import STATE

_DTYPES = {"U8": torch.uint8, "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
READ_BYTES = PINNED_PIECE_BYTES
"""Bytes per read, and per staging buffer (two per reader)."""
_ITEM_BYTES = 8
"""Of the largest dtype."""
_MAX_GAP_BYTES = 2**18
"""A smaller gap between two weights is read along with them."""


Target = Tensor | RowsToQuantize


@dataclass(frozen=True, slots=True)
class WeightRows:
    """Some rows of a weight as its destination. shape: of the whole weight; start: the first row's number."""

    rows: Tensor
    start: int
    shape: tuple[int, int]


Destination = Tensor | Nf4Matrix | WeightRows
"""Of a named weight."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: bytes start..end, row after row."""

    path: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def narrow(self, start: int, length: int) -> "StoredTensor":
        """Some of its rows."""
        row_bytes = (self.end - self.start) // self.shape[0]
        start, end = (self.start + row * row_bytes for row in (start, start + length))
        return replace(self, start=start, end=end, shape=(length, *self.shape[1:]))


def index_tensors(checkpoint: BaseCheckpoint) -> dict[str, StoredTensor]:
    """Every weight by name, from the files' headers alone. A tied output layer is listed as the embedding.

    Those of an NF4 weight (`models/quantization.py`) are listed one by one.
    Raises LorgnetteError for a file that is broken or truncated, or has a dtype that is neither floating-point nor U8.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in checkpoint.weight_files:
        tensors |= {convert_weight_name(name): entry for name, entry in _read_header(path, checkpoint).items()}
    if has_tied_embeddings(checkpoint.load_hf_config()) and EMBEDDING in tensors:
        tensors[LM_HEAD] = tensors[EMBEDDING]
    return tensors


def list_nf4_modules(checkpoint: BaseCheckpoint) -> dict[str, bool]:
    """The modules whose weight a loaded model holds in NF4, and whether with double quantization."""
    quantization = checkpoint.quantization
    if quantization is None:
        return {}
    modules = checkpoint.list_quantized_modules()
    if not quantization.is_stored:
        return dict.fromkeys(modules, quantization.has_double_quantization)
    tensors = index_tensors(checkpoint)
    return {module: f"{module}.weight.nested_absmax" in tensors for module in modules}


def load_weights_into(
    checkpoint: BaseCheckpoint,
    destinations: Mapping[str, Destination],
    *,
    quantize_as: torch.dtype = torch.float32,
) -> None:
    """Copy each named weight into its destination, in its dtype. Destinations are on one device and may be strided.

    quantize_as: values are rounded to this dtype before they are quantized, as transformers does.
    Weights that are stored in NF4 have no WeightRows as destination.
    On CUDA the caller's stream waits for the copies; the host does not.
    Raises LorgnetteError as `index_tensors` does, and for a weight that is missing or has another shape.
    """
    tensors = index_tensors(checkpoint)
    states = {name: read_nf4_state(name, tensors, checkpoint) for name in destinations}
    stored = {name: state for name, state in states.items() if state}
    shapes = {name: entry.shape for name, entry in tensors.items()} | {name: s.shape for name, s in stored.items()}
    _check_shapes({name: tuple(destination.shape) for name, destination in destinations.items()}, shapes, checkpoint)
    to_quantize = {n: d for n, d in destinations.items() if isinstance(d, Nf4Matrix) and n not in stored}
    to_dequantize = {n: d for n, d in destinations.items() if isinstance(d, Tensor) and n in stored}

    # Where each stored tensor goes. A matrix that is quantized collects its absmax in fp32.
    targets: dict[str, Target] = {n: d for n, d in destinations.items() if isinstance(d, Tensor) and n not in stored}
    absmax = allocate_absmax(to_quantize)
    targets |= {n: RowsToQuantize(m.packed, absmax[n], m.shape, quantize_as) for n, m in to_quantize.items()}
    matrices = {
        name: Nf4Matrix.allocate(stored[name].shape, out.device, is_nested=stored[name].offset is not None)
        for name, out in to_dequantize.items()
    }
    for name, state in stored.items():
        matrix = matrices.get(name) or destinations[name]
        assert isinstance(matrix, Nf4Matrix)
        parts = list_parts(name, matrix)
        _check_parts(parts, tensors, checkpoint)
        targets |= parts
        if (matrix.nested is None) != (state.offset is None):
            raise _build_read_error(f"{name} has double quantization in one of its tensors alone", checkpoint)
        if matrix.nested is not None and state.offset is not None:
            matrix.nested.offset.fill_(state.offset)

    pairs = [(tensors[name], target) for name, target in targets.items()]
    pairs += [
        (tensors[name].narrow(part.start, len(part.rows)), part.rows)
        for name, part in destinations.items()
        if isinstance(part, WeightRows) and len(part.rows)
    ]
    if any(target.is_cuda for _, target in pairs):
        _upload(pairs, checkpoint)
    else:
        _copy_on_cpu(pairs, checkpoint)
    for name, matrix in to_quantize.items():
        quantize_absmax(absmax[name], matrix)
    for name, out in to_dequantize.items():
        dequantize_nf4(matrices[name], out)


def read_nf4_state(name: str, tensors: Mapping[str, StoredTensor], checkpoint: BaseCheckpoint) -> Nf4State | None:
    """What a file says of a weight in NF4; None of another weight. Raises LorgnetteError as `parse_nf4_state` does."""
    stored = tensors.get(f"{name}.{STATE}")
    if stored is None:
        return None
    with open(stored.path, "rb") as file:
        file.seek(stored.start)
        content = file.read(min(stored.end - stored.start, MAX_STATE_BYTES))
    try:
        return parse_nf4_state(content)
    except LorgnetteError as error:
        raise _build_read_error(f"{name}.{STATE} {error.message}", checkpoint) from error


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], checkpoint: BaseCheckpoint
) -> None:
    missing = sorted(expected.keys() - shapes.keys())
    misshapen = sorted(name for name in expected.keys() & shapes.keys() if shapes[name] != expected[name])
    if names := missing + misshapen:
        groups = ((missing, "missing"), (misshapen, "of another shape"))
        counts = ", ".join(f"{len(group)} {kind}" for group, kind in groups if group)
        message = f"weights do not fit the model: {counts} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        raise LorgnetteError(message, where=str(checkpoint.folder), hint=DOWNLOAD_AGAIN)


def _check_parts(parts: Mapping[str, Tensor], tensors: Mapping[str, StoredTensor], checkpoint: BaseCheckpoint) -> None:
    """Of a weight that is stored in NF4. Its bytes are stored as a column."""
    sizes = {name: (math.prod(tensors[name].shape),) for name in parts if name in tensors}
    _check_shapes({name: (part.numel(),) for name, part in parts.items()}, sizes, checkpoint)
    for name, part in parts.items():
        if (dtype := tensors[name].dtype) != part.dtype:
            raise _build_read_error(f"{name} is stored as {dtype}, not {part.dtype}", checkpoint)


def _copy_on_cpu(pairs: Iterable[tuple[StoredTensor, Target]], checkpoint: BaseCheckpoint) -> None:
    maps = {path: np.memmap(path, mode="c") for path in checkpoint.weight_files}  # copy-on-write: torch wants to write
    for entry, target in pairs:
        if entry.start < entry.end:
            count = math.prod(entry.shape)
            flat = torch.frombuffer(maps[entry.path], dtype=entry.dtype, count=count, offset=entry.start)
            target.copy_(flat.view(target.shape))


def _read_header(path: Path, checkpoint: BaseCheckpoint) -> dict[str, StoredTensor]:
    try:
        entries = read_tensor_entries(path)
    except (LorgnetteError, OSError) as error:
        raise _build_read_error(f"{path.name} {error}", checkpoint) from error
    tensors = {}
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise _build_read_error(f"{name} is stored as {entry.dtype}", checkpoint)
        tensors[name] = StoredTensor(path, entry.start, entry.end, _DTYPES[entry.dtype], entry.shape)
    return tensors


def _build_read_error(why: str, checkpoint: BaseCheckpoint) -> LorgnetteError:
    return LorgnetteError(f"weights cannot be loaded: {why}", where=str(checkpoint.folder), hint=DOWNLOAD_AGAIN)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Whole rows of a weight, with the rows of the destination that they belong to."""

    stored: StoredTensor
    destination: Target
    start: int
    end: int


def _split_into_chunks(entry: StoredTensor, destination: Target) -> Iterator[_Chunk]:
    """A weight as chunks of at most READ_BYTES, but at least one row, or the rows of whole blocks."""
    if entry.start == entry.end:
        return
    if isinstance(destination, Tensor) and not entry.shape:
        destination = destination[None]
    unit = destination.rows_per_unit if isinstance(destination, RowsToQuantize) else 1
    row_bytes = (entry.end - entry.start) // len(destination)
    step = max(1, READ_BYTES // (row_bytes * unit)) * unit
    for row in range(0, len(destination), step):
        rows = destination[row : row + step] if step < len(destination) else destination
        start = entry.start + row * row_bytes
        yield _Chunk(entry, rows, start, start + len(rows) * row_bytes)


def _group_reads(pairs: Iterable[tuple[StoredTensor, Target]]) -> list[list[_Chunk]]:
    """Reads of at most READ_BYTES, each of chunks that are close together in one file."""
    chunks = [chunk for pair in pairs for chunk in _split_into_chunks(*pair)]
    reads: list[list[_Chunk]] = []
    for chunk in sorted(chunks, key=lambda chunk: (chunk.stored.path, chunk.start)):
        first, last = (reads[-1][0], reads[-1][-1]) if reads else (chunk, chunk)
        if (
            reads
            and first.stored.path == chunk.stored.path
            and chunk.end - first.start <= READ_BYTES
            and chunk.start - last.end <= _MAX_GAP_BYTES
            and (chunk.start - first.start) % chunk.stored.dtype.itemsize == 0  # aligned, to be viewed as its dtype
        ):
            reads[-1].append(chunk)
        else:
            reads.append([chunk])
    return reads


def _upload(pairs: list[tuple[StoredTensor, Target]], checkpoint: BaseCheckpoint) -> None:
    """To CUDA through pinned memory, by NUM_READERS threads, each with its own stream and two buffers."""
    reads = _group_reads(pairs)
    if not reads:
        return
    stream = torch.cuda.current_stream(reads[0][0].destination.device)
    ready = stream.record_event()
    shares = [reads[i::NUM_READERS] for i in range(min(NUM_READERS, len(reads)))]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for done in pool.map(lambda share: _upload_share(share, ready, checkpoint), shares):
            stream.wait_event(done)


def _upload_share(share: list[list[_Chunk]], ready: torch.cuda.Event, checkpoint: BaseCheckpoint) -> torch.cuda.Event:
    """One thread's share. The returned event is complete when the last byte is on the device."""
    size = max(read[-1].end - read[0].start for read in share)
    buffers = [torch.empty(-(-size // _ITEM_BYTES) * _ITEM_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    views = [_view_buffer(buffer, share) for buffer in buffers]
    uploaded = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
    stream = torch.cuda.Stream(share[0][0].destination.device)  # type: ignore[no-untyped-call]
    stream.wait_event(ready)  # earlier kernels may still use the destinations' memory
    with torch.cuda.stream(stream):
        # Double buffering: the disk fills one buffer while the other is copied to the device.
        for i, read in enumerate(share):
            uploaded[i % 2].synchronize()
            _fill_buffer(buffers[i % 2], read, checkpoint)
            for chunk in read:
                _copy_chunk(chunk, _view_chunk(chunk, read[0].start, views[i % 2]))
            uploaded[i % 2].record(stream)
    done: torch.cuda.Event = stream.record_event()
    return done


def _fill_buffer(buffer: Tensor, read: list[_Chunk], checkpoint: BaseCheckpoint) -> None:
    out = memoryview(buffer.numpy())[: read[-1].end - read[0].start]  # type: ignore[arg-type]
    try:
        descriptor = os.open(read[0].stored.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            read_at(descriptor, out, read[0].start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _build_read_error(error.strerror or str(error), checkpoint) from error


def _view_buffer(buffer: Tensor, reads: Iterable[list[_Chunk]]) -> dict[torch.dtype, Tensor]:
    """A buffer of whole _ITEM_BYTES as each dtype of these reads."""
    return {dtype: buffer.view(dtype) for dtype in {chunk.stored.dtype for read in reads for chunk in read}}


def _view_chunk(chunk: _Chunk, start: int, views: Mapping[torch.dtype, Tensor]) -> Tensor:
    """The chunk's values in a buffer that was filled from `start` of the file on. views: as of `_view_buffer`."""
    shape, buffer = tuple(chunk.destination.shape), views[chunk.stored.dtype]
    assert math.prod(shape) * buffer.itemsize == chunk.end - chunk.start
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return buffer.as_strided(shape, strides, (chunk.start - start) // buffer.itemsize)


def _copy_chunk(chunk: _Chunk, source: Tensor) -> None:
    if isinstance(chunk.destination, RowsToQuantize):
        chunk.destination.copy_(source)
    elif chunk.destination.dtype == source.dtype and chunk.destination.is_contiguous():
        chunk.destination.copy_(source, non_blocking=True)
    else:  # uploaded as stored; the device converts and scatters it
        chunk.destination.copy_(source.to(chunk.destination.device, non_blocking=True))
