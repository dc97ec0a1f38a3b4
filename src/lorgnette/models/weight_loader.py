"""A checkpoint's weights, read from its safetensors files directly to where they are used.

    page cache ──preadv──▶ pinned staging ──copy engine──▶ the destination on the device      (CUDA)
    page cache ──mmap────▶ cast ─────────────────────────▶ the destination                    (CPU)

A destination may be a slice of a larger matrix: fused matrices are written in place, and no weight is on the device
twice. Weights have transformers' current names.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
NUM_READERS = 4
READ_BYTES = 16 * 2**20
"""Bytes per read, and per staging buffer (two per reader)."""
_MAX_GAP_BYTES = 2**18
"""A smaller gap between two weights is read along with them."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A weight in a file: bytes start..end, row after row."""

    path: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def index_tensors(checkpoint: BaseCheckpoint) -> dict[str, StoredTensor]:
    """Every weight by name, from the files' headers alone. A tied output layer is listed as the embedding.

    Raises LorgnetteError for a file that is broken or truncated, or has a dtype that is not floating-point.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in checkpoint.weight_files:
        entries = _read_header(path, checkpoint)
        tensors |= {checkpoint.family.convert_weight_name(name): entry for name, entry in entries.items()}
    config = checkpoint.load_hf_config()
    is_tied = config.get("tie_word_embeddings") or (config.get("text_config") or {}).get("tie_word_embeddings")
    if is_tied and EMBEDDING in tensors:
        tensors[LM_HEAD] = tensors[EMBEDDING]
    return tensors


def load_weights(
    checkpoint: BaseCheckpoint, is_wanted: Callable[[str], bool], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Load the weights whose names are wanted. A tied output layer and the embedding are one tensor.

    On a CPU a weight stored in `dtype` is a memory map of the file: no memory until it is used.
    Raises LorgnetteError as `index_tensors` does.
    """
    wanted = {name: entry for name, entry in index_tensors(checkpoint).items() if is_wanted(name)}
    if device.type == "cpu":
        tensors = {entry: tensor.to(dtype) for entry, tensor in _map_tensors(set(wanted.values()))}
    else:
        tensors = {entry: torch.empty(entry.shape, dtype=dtype, device=device) for entry in set(wanted.values())}
        _upload(list(tensors.items()), checkpoint)
    return {name: tensors[entry] for name, entry in wanted.items()}


def load_weights_into(checkpoint: BaseCheckpoint, destinations: Mapping[str, Tensor]) -> None:
    """Copy each named weight into its destination, in its dtype. Destinations are on one device and may be strided.

    On CUDA the caller's stream waits for the copies; the host does not.
    Raises LorgnetteError as `index_tensors` does, and for a weight that is missing or has another shape.
    """
    tensors = index_tensors(checkpoint)
    _check_shapes(checkpoint, tensors, destinations)
    pairs = [(tensors[name], destination) for name, destination in destinations.items()]
    if all(destination.device.type == "cpu" for destination in destinations.values()):
        mapped = dict(_map_tensors({entry for entry, _ in pairs}))
        for entry, destination in pairs:
            destination.copy_(mapped[entry])
    else:
        _upload(pairs, checkpoint)


def _check_shapes(
    checkpoint: BaseCheckpoint, tensors: Mapping[str, StoredTensor], destinations: Mapping[str, Tensor]
) -> None:
    mismatches = {
        "missing": sorted(destinations.keys() - tensors.keys()),
        "of another shape": sorted(
            name for name, tensor in destinations.items() if name in tensors and tensors[name].shape != tensor.shape
        ),
    }
    names = [name for group in mismatches.values() for name in group]
    if names:
        counts = ", ".join(f"{len(group)} {kind}" for kind, group in mismatches.items() if group)
        raise LorgnetteError(
            f"weights do not fit the model: {counts} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})",
            where=str(checkpoint.folder),
            hint=DOWNLOAD_AGAIN,
        )


def _read_header(path: Path, checkpoint: BaseCheckpoint) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt"):
            pass  # safetensors checks that the header and every byte it lists are in the file
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tree = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise _build_read_error(str(error), checkpoint) from error
    entries = {name: entry for name, entry in tree.items() if name != "__metadata__"}
    for name, entry in entries.items():
        if entry["dtype"] not in _DTYPES:
            raise _build_read_error(f"{name} is stored as {entry['dtype']}", checkpoint)
    body = 8 + length
    return {
        name: StoredTensor(
            path,
            body + entry["data_offsets"][0],
            body + entry["data_offsets"][1],
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
        )
        for name, entry in entries.items()
    }


def _build_read_error(why: str, checkpoint: BaseCheckpoint) -> LorgnetteError:
    lines = why.strip().splitlines() or ["the file is empty"]
    return LorgnetteError(f"weights cannot be loaded: {lines[0]}", where=str(checkpoint.folder), hint=DOWNLOAD_AGAIN)


def _map_tensors(entries: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Views of the files, copy-on-write: a write into a tensor never reaches the checkpoint."""
    maps: dict[Path, mmap.mmap] = {}
    for entry in entries:
        if entry.path not in maps:
            with open(entry.path, "rb") as file:
                maps[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if entry.start == entry.end:
            yield entry, torch.empty(entry.shape, dtype=entry.dtype)
            continue
        flat = torch.frombuffer(maps[entry.path], dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.start)
        yield entry, flat.view(entry.shape)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Whole rows of a weight, with the rows of the destination that they belong to."""

    stored: StoredTensor
    destination: Tensor
    start: int
    end: int


def _split_into_chunks(entry: StoredTensor, destination: Tensor) -> Iterator[_Chunk]:
    """A weight as chunks of at most READ_BYTES, but at least one row."""
    rows = entry.shape[0] if entry.shape else 1
    destination = destination if entry.shape else destination[None]
    if entry.start == entry.end:
        return
    row_bytes = (entry.end - entry.start) // rows
    step = max(1, READ_BYTES // row_bytes)
    for row in range(0, rows, step):
        last = min(row + step, rows)
        yield _Chunk(entry, destination[row:last], entry.start + row * row_bytes, entry.start + last * row_bytes)


def _group_reads(pairs: Iterable[tuple[StoredTensor, Tensor]]) -> list[list[_Chunk]]:
    """Reads of at most READ_BYTES, each of chunks that are close together in one file."""
    chunks = sorted(
        (chunk for pair in pairs for chunk in _split_into_chunks(*pair)),
        key=lambda chunk: (chunk.stored.path, chunk.start),
    )
    reads: list[list[_Chunk]] = []
    for chunk in chunks:
        if reads and _can_merge(reads[-1], chunk):
            reads[-1].append(chunk)
        else:
            reads.append([chunk])
    return reads


def _can_merge(read: list[_Chunk], chunk: _Chunk) -> bool:
    return (
        read[0].stored.path == chunk.stored.path
        and chunk.end - read[0].start <= READ_BYTES
        and chunk.start - read[-1].end <= _MAX_GAP_BYTES
        and (chunk.start - read[0].start) % chunk.stored.dtype.itemsize == 0  # aligned, to be viewed as its dtype
    )


def _upload(pairs: list[tuple[StoredTensor, Tensor]], checkpoint: BaseCheckpoint) -> None:
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
    device = share[0][0].destination.device
    size = max(read[-1].end - read[0].start for read in share)
    buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    uploaded = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_event(ready)  # earlier kernels may still use the destinations' memory
    with torch.cuda.stream(stream):
        # Double buffering: the disk fills one buffer while the other is copied to the device.
        for i, read in enumerate(share):
            buffer, event = buffers[i % 2], uploaded[i % 2]
            event.synchronize()
            _fill_buffer(buffer, read, checkpoint)
            for chunk in read:
                _copy_chunk(chunk, buffer[chunk.start - read[0].start : chunk.end - read[0].start])
            event.record(stream)
    done: torch.cuda.Event = stream.record_event()
    return done


def _fill_buffer(buffer: Tensor, read: list[_Chunk], checkpoint: BaseCheckpoint) -> None:
    start, size = read[0].start, read[-1].end - read[0].start
    target = memoryview(buffer.numpy())[:size]  # type: ignore[arg-type]
    with open(read[0].stored.path, "rb", buffering=0) as file:
        done = 0
        while done < size:
            count = os.preadv(file.fileno(), [target[done:]], start + done)
            if count == 0:
                raise _build_read_error("the file became shorter while it was read", checkpoint)
            done += count


def _copy_chunk(chunk: _Chunk, staged: Tensor) -> None:
    source = staged.view(chunk.stored.dtype).view(chunk.destination.shape)
    if chunk.destination.dtype == source.dtype and chunk.destination.is_contiguous():
        chunk.destination.copy_(source, non_blocking=True)
    else:  # uploaded as stored; the device converts and scatters it
        chunk.destination.copy_(source.to(chunk.destination.device, non_blocking=True))
