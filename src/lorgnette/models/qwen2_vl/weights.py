"""A checkpoint's weights straight from its files to where they are computed with, under transformers' names of today.

    page cache ──preadv──▶ pinned staging ──copy engine──▶ device, into the place given       (CUDA)
    page cache ──mmap────▶ cast ─────────────────────────▶ the place given                    (CPU)

A place may be a slice of a larger matrix: what is fused is written fused, and no weight is on the device twice.
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
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import EMBEDDING, LM_HEAD, WeightShapes, load_hf_config

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_HINT = "download the checkpoint again, whole"
NUM_READERS = 4
READ_BYTES = 16 * 2**20
"""Of one read, and of each of a reader's two staging buffers."""
_MAX_GAP_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a weight lies: bytes start..end of a file, row after row."""

    path: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def index_tensors(checkpoint: BaseCheckpoint) -> dict[str, StoredTensor]:
    """Every weight of the checkpoint by today's name, from the files' headers alone. A tied output layer is the
    embedding under a second name.

    Raises LorgnetteError for a file that is broken, cut off, or holds a type that is no float.
    """
    found: dict[str, StoredTensor] = {}
    for path in checkpoint.weight_files:
        found |= {_convert_name(name): entry for name, entry in _read_header(path, checkpoint).items()}
    config = load_hf_config(checkpoint)
    tied = config.get("tie_word_embeddings") or (config.get("text_config") or {}).get("tie_word_embeddings")
    if tied and EMBEDDING in found:
        found[LM_HEAD] = found[EMBEDDING]
    return found


def check_weight_shapes(checkpoint: BaseCheckpoint, shapes: WeightShapes) -> None:
    """That the checkpoint holds these weights in these shapes and no others, from its headers alone.

    Raises LorgnetteError that counts and names what is missing, unexpected or of another shape.
    """
    found = index_tensors(checkpoint)
    extra = sorted(found.keys() - shapes.keys() - {LM_HEAD})
    _raise_on_mismatch(checkpoint, found, shapes, extra)


def load_weights(
    checkpoint: BaseCheckpoint, is_wanted: Callable[[str], bool], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The weights whose names are wanted; a tied output layer and the embedding are one tensor.

    On a CPU a weight that is stored in `dtype` is a map of the file: no memory until it is used.
    Raises LorgnetteError as `stored` does.
    """
    chosen = {name: entry for name, entry in index_tensors(checkpoint).items() if is_wanted(name)}
    if device.type == "cpu":
        made = {entry: tensor.to(dtype) for entry, tensor in _map_tensors(set(chosen.values()))}
    else:
        made = {entry: torch.empty(entry.shape, dtype=dtype, device=device) for entry in set(chosen.values())}
        _upload(list(made.items()), checkpoint)
    return {name: made[entry] for name, entry in chosen.items()}


def load_weights_into(checkpoint: BaseCheckpoint, destinations: Mapping[str, Tensor]) -> None:
    """Copy each named weight into its place, in the place's dtype. Places are all on one device, and may be strided.

    On CUDA the copies are ordered before whatever the caller's stream does next; the host does not wait for them.
    Raises LorgnetteError as `stored` does, and where a weight is missing or of another shape than its place.
    """
    found = index_tensors(checkpoint)
    _raise_on_mismatch(checkpoint, found, {name: tuple(place.shape) for name, place in destinations.items()}, [])
    pairs = [(found[name], place) for name, place in destinations.items()]
    if all(place.device.type == "cpu" for place in destinations.values()):
        mapped = dict(_map_tensors({entry for entry, _ in pairs}))
        for entry, place in pairs:
            place.copy_(mapped[entry])
    else:
        _upload(pairs, checkpoint)


def _raise_on_mismatch(
    checkpoint: BaseCheckpoint, found: Mapping[str, StoredTensor], shapes: WeightShapes, extra: list[str]
) -> None:
    odd = {
        "missing": sorted(shapes.keys() - found.keys()),
        "unexpected": extra,
        "of another shape": sorted(n for n in shapes.keys() & found.keys() if found[n].shape != shapes[n]),
    }
    wrong = [name for names in odd.values() for name in names]
    if wrong:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in odd.items() if names)
        raise LorgnetteError(
            f"weights do not fit the model: {counts} ({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''})",
            where=str(checkpoint.folder),
            hint=_HINT,
        )


def _read_header(path: Path, checkpoint: BaseCheckpoint) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt"):
            pass  # it has seen that the header is whole and that the file holds every byte the header speaks of
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
    lines = why.strip().splitlines() or ["nothing is in it"]
    return LorgnetteError(f"weights cannot be loaded: {lines[0]}", where=str(checkpoint.folder), hint=_HINT)


def _convert_name(name: str) -> str:
    """Until transformers 4.52 the decoder stood at `model` and the tower at `visual`; the hub's files still say so."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


def _map_tensors(entries: Iterable[StoredTensor]) -> Iterator[tuple[StoredTensor, Tensor]]:
    """Views of the files. Copy-on-write, so that nobody can write into a checkpoint."""
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
    """Whole rows of a weight, and the rows of its place where they belong."""

    stored: StoredTensor
    destination: Tensor
    start: int
    end: int


def _split_into_chunks(entry: StoredTensor, place: Tensor) -> Iterator[_Chunk]:
    """A weight cut into runs of rows of at most READ_BYTES (one row at the least)."""
    rows = entry.shape[0] if entry.shape else 1
    place = place if entry.shape else place[None]
    if entry.start == entry.end:
        return
    width = (entry.end - entry.start) // rows
    at_once = max(1, READ_BYTES // width)
    for row in range(0, rows, at_once):
        last = min(row + at_once, rows)
        yield _Chunk(entry, place[row:last], entry.start + row * width, entry.start + last * width)


def _group_reads(pairs: Iterable[tuple[StoredTensor, Tensor]]) -> list[list[_Chunk]]:
    """Pieces that lie close together in one file, READ_BYTES at most, are one read."""
    pieces = sorted(
        (piece for pair in pairs for piece in _split_into_chunks(*pair)),
        key=lambda piece: (piece.stored.path, piece.start),
    )
    reads: list[list[_Chunk]] = []
    for piece in pieces:
        if reads and _can_merge(reads[-1], piece):
            reads[-1].append(piece)
        else:
            reads.append([piece])
    return reads


def _can_merge(read: list[_Chunk], piece: _Chunk) -> bool:
    return (
        read[0].stored.path == piece.stored.path
        and piece.end - read[0].start <= READ_BYTES
        and piece.start - read[-1].end <= _MAX_GAP_BYTES
        and (piece.start - read[0].start) % piece.stored.dtype.itemsize == 0  # to be seen as numbers of that type
    )


def _upload(pairs: list[tuple[StoredTensor, Tensor]], checkpoint: BaseCheckpoint) -> None:
    """Through pinned memory into CUDA places, by a few readers, each with a stream and two buffers of its own."""
    reads = _group_reads(pairs)
    if not reads:
        return
    here = torch.cuda.current_stream(reads[0][0].destination.device)
    ready = here.record_event()
    shares = [reads[i::NUM_READERS] for i in range(min(NUM_READERS, len(reads)))]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for done in pool.map(lambda share: _upload_share(share, ready, checkpoint), shares):
            here.wait_event(done)


def _upload_share(share: list[list[_Chunk]], ready: torch.cuda.Event, checkpoint: BaseCheckpoint) -> torch.cuda.Event:
    """One reader's share; the event is past once the last byte is in its place."""
    device = share[0][0].destination.device
    size = max(read[-1].end - read[0].start for read in share)
    buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_event(ready)  # the places' memory may still be in use by what ran before
    with torch.cuda.stream(stream):
        for turn, read in enumerate(share):
            buffer, free = buffers[turn % 2], copied[turn % 2]
            free.synchronize()
            _fill_buffer(buffer, read, checkpoint)
            for piece in read:
                _copy_chunk(piece, buffer[piece.start - read[0].start : piece.end - read[0].start])
            free.record(stream)
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


def _copy_chunk(piece: _Chunk, staged: Tensor) -> None:
    source = staged.view(piece.stored.dtype).view(piece.destination.shape)
    if piece.destination.dtype == source.dtype and piece.destination.is_contiguous():
        piece.destination.copy_(source, non_blocking=True)
    else:  # as it is to the device, converted and spread there
        piece.destination.copy_(source.to(piece.destination.device, non_blocking=True))
