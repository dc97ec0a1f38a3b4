"""Answers whose rows join and leave between decode steps: one device answers many users at once.

    waiting ── select ──▶ join: prefill into free rows ──▶ step: a token of every row ──▶ … ──▶ leave: the row is free

Rows have room for 512, 2048 or 8192 tokens. The rows of one room are in one KV cache with a fixed number of rows, so
that CUDA graphs can be captured: 8 or 32 on a GPU. When more join they move into the cache with more rows, and back
when few are left. A CPU needs no padding: there the number of rows is the next power of two. It computes steps on one
core less than it has, because other threads read requests and write answers meanwhile.

Base model and adapters answer in the same step: every row has a mask of the adapters' ranks (models/lora_linear.py).
Where all rows are those of the only adapter, or of the base model, the step is the one of `generate_answers`.

A CUDA device computes the next step while the host reads the tokens of the last one.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from lorgnette.device import copy_to_device, leave_core_free
from lorgnette.inference.generator import MAX_PREFILL_TOKENS, Generator, find_next_position
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.inference.loading import is_out_of_memory
from lorgnette.inference.sampling import SamplingParams, draw_uniforms, sample_tokens
from lorgnette.types import Encoded

SLOT_CLASSES = (512, 2048, 8192)
"""Tokens of a row, prompt and answer together."""
CUDA_ROW_COUNTS, CPU_ROW_COUNTS = (8, 32), (1, 2, 4, 8, 16, 32)
MAX_ROWS = 32
MAX_ROWS_OF_LARGEST = 8
MAX_JOIN_TOKENS = 4096
"""Prompt tokens that join at once while others are answered: they wait for the prefill."""


@dataclass(eq=False)
class DecodeRow:
    """One answer to generate. adapter: its number among the decoder's; None: the base model."""

    prompt: Encoded
    adapter: int | None
    sampling: SamplingParams

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer together."""
        return len(self.prompt.input_ids) + self.sampling.max_new_tokens


class ContinuousBatch:
    """Answers whose rows join and leave between decode steps. Use it from one thread.

    adapter_ranks: of the decoder's adapters, in order (`load_decoder_with_adapters`).
    """

    def __init__(self, generator: Generator, adapter_ranks: Sequence[int] = ()) -> None:
        self.generator = generator
        self.rank_masks = torch.from_numpy(_build_rank_masks(adapter_ranks)).to(generator.device)
        """Of every adapter; the last row is the base model's."""
        self._pools = [_RowPool(self, num_slots) for num_slots in SLOT_CLASSES]
        self.max_tokens = SLOT_CLASSES[-1]
        """Room of the largest row: prompt and answer together."""

    def select(self, waiting: Sequence[DecodeRow]) -> list[DecodeRow]:
        """The rows, from the front, that `join` can take now. One whose room is full lets others pass; one for whose
        room memory is short does not: they would keep that memory.

        Raises no OutOfMemoryError: without memory for the first one, while nothing runs, it is returned alone, and
        `join` raises.
        """
        is_busy = any(pool.answers for pool in self._pools)
        budget = MAX_JOIN_TOKENS if is_busy else MAX_PREFILL_TOKENS
        groups = self._group_by_pool(waiting)
        for pool, rows in groups.items():
            pool.reserve(len(rows))
        free = {pool: pool.num_free for pool in groups}
        selected = list[DecodeRow]()
        for row in waiting:
            pool, num_tokens = self._find_pool(row), len(row.prompt.input_ids)
            if (selected and num_tokens > budget) or not pool.num_rows:
                break
            if free[pool]:
                free[pool] -= 1
                budget -= num_tokens
                selected.append(row)
        return selected if selected or is_busy else list(waiting[:1])

    @torch.no_grad()
    def join(self, rows: Sequence[DecodeRow]) -> None:
        """Prefill the rows' prompts. The features of their images are ready.

        Raises OutOfMemoryError and leaves the batch as it was.
        """
        by_pool = self._group_by_pool(rows)
        for pool, members in by_pool.items():
            pool.reserve(len(members))
        for pool, members in by_pool.items():  # one may have taken the memory of another
            if pool.num_free < len(members):
                raise torch.OutOfMemoryError(f"no memory for {len(members)} more rows of {pool.num_slots} tokens")
        prefilled = [(pool, pool.prefill(members)) for pool, members in by_pool.items()]
        for pool, answers in prefilled:
            pool.add(answers)

    @torch.no_grad()
    def step(self) -> list[tuple[DecodeRow, int]]:
        """The next token of every row; nothing without rows. On CUDA the device goes on with the step after it.

        After an OutOfMemoryError it can be tried again: no token is lost.
        """
        pools = [pool for pool in self._pools if pool.answers]
        for pool in pools:
            pool.advance()
        for pool in pools:
            pool.shrink()
        picked = [(pool, pool.pick_tokens()) for pool in pools]
        for pool, tokens in picked:
            pool.send_tokens(tokens)
        if self.generator.device.type == "cuda":
            self._launch_next_step(pools)
        return [pair for pool in pools for pair in pool.read_tokens()]

    def leave(self, row: DecodeRow) -> None:
        """Free the row: its answer has ended, or nobody waits for it."""
        self._find_pool(row).remove(row)
        if not any(pool.answers for pool in self._pools):
            self._allow_growth()

    @torch.no_grad()
    def capture_steps(self) -> None:
        """Capture every kind of decode step of the smallest rows, so that no user waits for it. No row has joined.

        Nothing is captured on a CPU.
        """
        if self.generator.device.type == "cuda":
            self._pools[0].capture_steps()

    def read_logits(self, row: DecodeRow) -> Float32[Tensor, " V"]:
        """The logits of the first token of a row that has joined since the last step."""
        return self._find_pool(row).read_logits(row)

    def drop_idle_memory(self) -> None:
        """Free the caches that hold no rows, with their graphs."""
        self.drop_idle_caches()
        self._allow_growth()

    def drop_idle_caches(self) -> None:
        """As `drop_idle_memory`; rows that no memory was found for still wait for others to leave."""
        for pool in self._pools:
            pool.drop_idle_caches()
        if not any(pool.has_graphs for pool in self._pools):
            self.generator.drop_caches()
        elif self.generator.device.type == "cuda":
            torch.cuda.empty_cache()

    def _launch_next_step(self, pools: Sequence["_RowPool"]) -> None:
        """Out of memory, the next `step` tries again: the tokens of this one are lost to nobody."""
        has_launched = False
        try:
            for pool in pools:
                pool.advance()
            has_launched = True
        except torch.OutOfMemoryError:
            pass
        if not has_launched:  # now that no traceback holds its tensors
            self.drop_idle_caches()

    def _allow_growth(self) -> None:
        for pool in self._pools:
            pool.allow_growth()

    def _group_by_pool(self, rows: Sequence[DecodeRow]) -> dict["_RowPool", list[DecodeRow]]:
        groups: dict[_RowPool, list[DecodeRow]] = {}
        for row in rows:
            groups.setdefault(self._find_pool(row), []).append(row)
        return groups

    def _find_pool(self, row: DecodeRow) -> "_RowPool":
        """The pool with the smallest room for the row."""
        return next(pool for pool in self._pools if row.num_tokens <= pool.num_slots)


@dataclass(eq=False, slots=True)
class _Answer:
    """A row's state on the host, which every launch of a step updates.

    index: its row of the cache. length, position: as of KVCache. uniforms: of its tokens; none if it is greedy.
    num_tokens: picked so far.
    """

    row: DecodeRow
    index: int
    length: int
    position: int
    uniforms: Float32[np.ndarray, " N"]
    num_tokens: int = 0


class _RowPool:
    """The rows with room for `num_slots` tokens, in a cache that is exchanged for one with more or fewer rows.

    answers: by their row of the cache. Picked tokens are pending until `advance` decodes them.
    """

    def __init__(self, batch: ContinuousBatch, num_slots: int) -> None:
        self.num_slots, self.answers = num_slots, dict[int, _Answer]()
        self._generator, self._device, self._rank_masks = batch.generator, batch.generator.device, batch.rank_masks
        self._num_adapters = len(batch.rank_masks) - 1
        self._free_memory = batch.drop_idle_caches
        self._is_cuda = self._device.type == "cuda"
        self._row_counts = list_row_counts(num_slots, self._device)
        self._most_rows = self._row_counts[-1]
        self._cache: KVCache | None = None
        self._idle: dict[int, KVCache] = {}
        self._has_changed = False
        self._pending: Int64[Tensor, " B"] | None = None
        self._host_tokens: Int64[Tensor, " B"] | None = None
        self._is_copied = torch.cuda.Event() if self._is_cuda else None  # type: ignore[no-untyped-call]
        self._draws: _Draws | None = None

    @property
    def has_graphs(self) -> bool:
        caches = [*self._idle.values(), *([] if self._cache is None else [self._cache])]
        return any(graph is not None for cache in caches for graph in cache.graphs.values())

    @property
    def num_rows(self) -> int:
        return 0 if self._cache is None else self._cache.shape.num_rows

    @property
    def num_free(self) -> int:
        return self.num_rows - len(self.answers)

    def reserve(self, num_new: int) -> None:
        """Move into a cache with more rows if new ones need it, as far as there is room and memory.

        Where no memory is found for one, its rows are not asked for again until `allow_growth`. Caches of other pools
        that have no rows may make way.
        """
        wanted = min(len(self.answers) + num_new, self._most_rows)
        if wanted > self.num_rows:
            fitting = next(count for count in self._row_counts if count >= wanted)
            counts = (count for count in reversed(self._row_counts) if self.num_rows < count <= fitting)
            any(map(self._try_move, counts))
            if self.num_rows < fitting:
                self._most_rows = self.num_rows

    def allow_growth(self) -> None:
        self._most_rows = self._row_counts[-1]

    def capture_steps(self) -> None:
        """Of every number of rows, ending in the smallest. The second step of a kind is captured."""
        for num_rows in reversed(self._row_counts):
            if not self._try_move(num_rows):
                continue
            assert self._cache is not None
            kinds: list[tuple[bool, Tensor | None]] = [(False, None)]
            kinds += [(True, self._cache.rank_mask)] if self._num_adapters else []
            kinds += [(True, None)] if self._num_adapters == 1 else []
            for use_adapter, mask in kinds * 2:
                tokens = self._cache.input_ids.clone()
                self._generator.decode_step(self._cache, tokens, use_adapter=use_adapter, rank_mask=mask)

    def prefill(self, rows: Sequence[DecodeRow]) -> list[_Answer]:
        """Write the prompts into free rows, which stay free until `add`."""
        self.advance()  # its logits would overwrite those of the prompts
        assert self._cache is not None
        free = [i for i in range(self.num_rows) if i not in self.answers]
        answers = [_start_answer(row, index) for row, index in zip(rows, free, strict=False)]
        for adapter, members in _group_by_adapter(answers).items():
            mask = None if adapter is None or self._num_adapters == 1 else self._rank_masks[adapter].unsqueeze(0)
            self._generator.prefill_rows(
                self._cache, [answer.index for answer in members], [answer.row.prompt for answer in members],
                use_adapter=adapter is not None, rank_mask=mask,
            )  # fmt: skip
        return answers

    def add(self, answers: Sequence[_Answer]) -> None:
        self.answers |= {answer.index: answer for answer in answers}
        self._has_changed = True

    def read_logits(self, row: DecodeRow) -> Float32[Tensor, " V"]:
        assert self._cache is not None
        return self._cache.logits[self._find_index(row)].clone()

    def remove(self, row: DecodeRow) -> None:
        del self.answers[self._find_index(row)]
        self._has_changed = True

    def shrink(self) -> None:
        """Move into a cache with fewer rows if few are left. No tokens are pending."""
        # On CUDA into one that is there, and with room for as many again: the next row would need the larger one.
        needed = 2 * len(self.answers) if self._is_cuda else len(self.answers)
        count = next(count for count in self._row_counts if count >= min(needed, self.num_rows))
        if count < self.num_rows and (count in self._idle or not self._is_cuda):
            self._try_move(count)

    def pick_tokens(self) -> Int64[Tensor, " B"]:
        """The next token of every row of the cache."""
        assert self._cache is not None
        self._upload_changes()
        logits = self._cache.logits
        tokens = logits.argmax(-1)
        if (draws := self._draws) is not None:
            uniforms = copy_to_device(draws.list_uniforms(), self._device)
            drawn = sample_tokens(logits.index_select(0, draws.rows), uniforms, draws.temperatures, draws.top_ps)
            tokens.index_copy_(0, draws.rows, drawn)
        return tokens

    def send_tokens(self, tokens: Int64[Tensor, " B"]) -> None:
        """Start the copy of the picked tokens to the host; they are pending."""
        for answer in self.answers.values():
            answer.num_tokens += 1
        self._pending = tokens
        if self._is_copied is None:
            self._host_tokens = tokens
        else:
            self._host_tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._host_tokens.copy_(tokens, non_blocking=True)
            self._is_copied.record()

    def advance(self) -> None:
        """Decode the pending tokens of the rows that are still there, if any. Out of memory, they stay pending."""
        if self._pending is None or not self.answers:
            self._pending = None
            return
        assert self._cache is not None
        self._upload_changes()
        adapters = {answer.row.adapter for answer in self.answers.values()}
        needs_mask = adapters != {None} and (len(adapters) > 1 or self._num_adapters > 1)
        mask = self._cache.rank_mask if needs_mask else None
        with nullcontext() if self._is_cuda else leave_core_free():
            self._generator.decode_step(self._cache, self._pending, use_adapter=adapters != {None}, rank_mask=mask)
        self._pending = None
        for answer in self.answers.values():
            answer.length += 1
            answer.position += 1

    def read_tokens(self) -> Iterator[tuple[DecodeRow, int]]:
        """Wait for the copy of the tokens that were picked last."""
        assert self._host_tokens is not None
        if self._is_copied is not None:
            self._is_copied.synchronize()
        tokens = self._host_tokens.tolist()
        return ((answer.row, tokens[index]) for index, answer in self.answers.items())

    def drop_idle_caches(self) -> None:
        """The current one too, if it has no rows."""
        self._idle.clear()
        if not self.answers:
            self._cache = self._pending = self._draws = None

    def _find_index(self, row: DecodeRow) -> int:
        return next(index for index, answer in self.answers.items() if answer.row is row)

    def _upload_changes(self) -> None:
        """Tell the device which rows there are, after some have joined, left or moved."""
        if not self._has_changed:
            return
        assert self._cache is not None
        state = np.zeros(self._cache.state.shape, np.int32)
        masks = np.full(self._cache.shape.num_rows, self._num_adapters, np.int32)
        for index, answer in self.answers.items():
            state[:, index] = answer.length, answer.position, 1
            if answer.row.adapter is not None:
                masks[index] = answer.row.adapter
        self._cache.state.copy_(copy_to_device(state, self._device))
        assert self._cache.rank_mask is not None
        torch.index_select(self._rank_masks, 0, copy_to_device(masks, self._device), out=self._cache.rank_mask)
        drawing = [answer for answer in self.answers.values() if len(answer.uniforms)]
        self._draws = None
        if drawing:
            columns = [[answer.row.sampling.temperature, answer.row.sampling.top_p] for answer in drawing]
            settings = copy_to_device(np.array(columns, np.float32), self._device)
            rows = copy_to_device(np.array([answer.index for answer in drawing]), self._device)
            self._draws = _Draws(rows, settings[:, :1], settings[:, 1:], drawing)
        self._has_changed = False

    def _try_move(self, num_rows: int) -> bool:
        """Move all rows into a cache with this many, which is an idle one or new. False if memory is short.

        On CUDA the old cache stays, with its graphs.
        """
        if not self._try_once_to_move(num_rows):
            self._free_memory()
            return self._try_once_to_move(num_rows)
        return True

    def _try_once_to_move(self, num_rows: int) -> bool:
        try:
            self.advance()
            cache = self._idle.get(num_rows) or self._allocate_cache(num_rows)
            self._copy_rows(cache)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        self._idle.pop(num_rows, None)
        if self._cache is not None and self._is_cuda:
            self._idle[self.num_rows] = self._cache
        self._cache, self._has_changed = cache, True
        return True

    def _copy_rows(self, cache: KVCache) -> None:
        """Copy all rows into the first ones of another cache."""
        if self._cache is None or not self.answers:
            return
        answers = list(self.answers.values())
        indices = copy_to_device(np.array([answer.index for answer in answers]), self._device)
        longest = max(answer.length for answer in answers)
        for source, target in zip(self._cache.layers, cache.layers, strict=True):
            target[: len(answers), :longest].copy_(source[:, :longest].index_select(0, indices))
        cache.logits[: len(answers)].copy_(self._cache.logits.index_select(0, indices))
        for index, answer in enumerate(answers):
            answer.index = index
        self.answers = dict(enumerate(answers))

    def _allocate_cache(self, num_rows: int) -> KVCache:
        decoder, shape = self._generator.decoder, CacheShape(num_rows, self.num_slots)
        cache = KVCache.from_config(shape, decoder.config, self._device, decoder.embed_tokens.dtype)
        cache.num_active_rows = num_rows
        cache.rank_mask = self._rank_masks.new_zeros(num_rows, self._rank_masks.shape[1])
        return cache


class _Draws(NamedTuple):
    """The rows that are sampled, with their settings."""

    rows: Int64[Tensor, " n"]
    temperatures: Float32[Tensor, "n 1"]
    top_ps: Float32[Tensor, "n 1"]
    answers: Sequence[_Answer]

    def list_uniforms(self) -> Float32[np.ndarray, " n"]:
        """The random number of every row's next token."""
        return np.array([answer.uniforms[min(answer.num_tokens, len(answer.uniforms) - 1)] for answer in self.answers])


def list_row_counts(num_slots: int, device: torch.device) -> list[int]:
    """The numbers of rows that a cache of this room may have, ascending."""
    most = MAX_ROWS if num_slots < SLOT_CLASSES[-1] else MAX_ROWS_OF_LARGEST
    return [count for count in (CUDA_ROW_COUNTS if device.type == "cuda" else CPU_ROW_COUNTS) if count <= most]


def _start_answer(row: DecodeRow, index: int) -> _Answer:
    sampling = row.sampling
    uniforms = np.empty(0, np.float32) if sampling.temperature is None else draw_uniforms(sampling, 0)
    return _Answer(row, index, len(row.prompt.input_ids), find_next_position(row.prompt), uniforms)


def _group_by_adapter(answers: Sequence[_Answer]) -> dict[int | None, list[_Answer]]:
    groups: dict[int | None, list[_Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.row.adapter, []).append(answer)
    return groups


def _build_rank_masks(adapter_ranks: Sequence[int]) -> Bool[np.ndarray, "n r"]:
    """False for the ranks that each adapter uses; the last row is the base model's, which uses none."""
    masks = np.ones((len(adapter_ranks) + 1, sum(adapter_ranks)), np.bool_)
    for mask, end, rank in zip(masks, accumulate(adapter_ranks), adapter_ranks, strict=False):
        mask[end - rank : end] = False
    return masks
