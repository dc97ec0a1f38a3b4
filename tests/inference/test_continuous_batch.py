"""Answers that join and leave at any step equal those generated alone."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import ProcessorSettings, TargetModule
from lorgnette.engine.loading import build_features, load_decoder_with_adapters, load_fast_model
from lorgnette.inference.continuous_batch import MAX_JOIN_TOKENS, ContinuousBatch, DecodeRow
from lorgnette.inference.decode import generate_tokens
from lorgnette.inference.generator import Generator
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.inference.sampling import Sampler, SamplingParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CPU = torch.device("cpu")
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
ADAPTERS: list[tuple[tuple[TargetModule, ...], int, int]] = [
    (("q_proj", "v_proj", "up_proj"), 4, 8), (("q_proj", "o_proj", "down_proj"), 3, 3),
]  # fmt: skip
"""Other modules, another rank and another scale each."""


class Served:
    """A tiny model with two adapters side by side, and with each of them alone."""

    def __init__(
        self, folder: Path, conversations: Sequence[Example], device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.checkpoint, processor = BaseCheckpoint.from_folder(folder), Processor.from_folder(folder, PROCESSOR)
        self.prompts = [processor.encode(example, add_generation_prompt=True) for example in conversations]
        features = build_features(self.checkpoint, processor.image_processor, device, dtype)
        features.prepare(grid for prompt in self.prompts for grid in prompt.grids)
        self.adapters = make_adapters(self.checkpoint)
        decoder, self.ranks = load_decoder_with_adapters(self.checkpoint, self.adapters, device, dtype)
        self.generator = Generator(decoder, features)
        alone = [load_fast_model(self.checkpoint, adapter, features, dtype).decoder for adapter in self.adapters]
        self.alone = [Generator(decoder, features) for decoder in alone]

    def answer_alone(self, row: DecodeRow) -> list[int]:
        generator, use_adapter = self.alone[row.adapter or 0], row.adapter is not None
        sampler, limit = Sampler(row.sampling, [0], generator.device), row.sampling.max_new_tokens
        return generate_tokens(generator, [row.prompt], sampler, limit, [], use_adapter=use_adapter)[0].tolist()


def make_adapters(checkpoint: BaseCheckpoint) -> list[SavedAdapter]:
    generator, adapters = torch.Generator().manual_seed(3), []
    for number, (targets, rank, alpha) in enumerate(ADAPTERS):
        shape = AdapterShape(checkpoint.load_text_config(), targets, rank, alpha / rank)
        state = {name: torch.randn(size, generator=generator) * 0.2 for name, size in shape.factor_shapes().items()}
        config = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets)}
        adapters.append(SavedAdapter(Path(f"adapter{number}"), config, state))
    return adapters


def make_rows(prompts: Sequence[Encoded], count: int, seed: int, *, longest: int = 6) -> list[DecodeRow]:
    """Answers of several lengths, of the base model and both adapters, every third of which is sampled."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        sampling = SamplingParams(max_new_tokens=draw.randint(1, longest), seed=number)
        if number % 3 == 0:
            sampling = replace(sampling, temperature=draw.uniform(0.5, 2), top_p=draw.choice([0.8, 1.0]))
        rows.append(DecodeRow(draw.choice(prompts), draw.choice([None, 0, 1]), sampling))
    return rows


def answer_together(batch: ContinuousBatch, rows: Sequence[DecodeRow], seed: int) -> dict[DecodeRow, list[int]]:
    """The tokens of every row. Rows arrive at random steps, and leave with their last token."""
    draw, tokens = random.Random(seed), {row: list[int]() for row in rows}
    coming, waiting, running = list(rows), list[DecodeRow](), set[DecodeRow]()
    while coming or waiting or running:
        for _ in range(draw.choice([0, 0, 1, 6])):
            waiting += coming[:1]
            del coming[:1]
        joining = batch.select(waiting)
        batch.join(joining)
        running |= set(joining)
        waiting = [row for row in waiting if row not in running]
        step = batch.step()
        assert {row for row, _ in step} == running
        for row, token in step:
            tokens[row].append(token)
            if len(tokens[row]) == row.sampling.max_new_tokens:
                batch.leave(row)
                running.remove(row)
    assert batch.step() == []
    return tokens


@pytest.fixture(scope="module")
def served(tiny: Path, conversations: list[Example]) -> Served:
    return Served(tiny, conversations)


@pytest.fixture(scope="module")
def expected(served: Served) -> Mapping[DecodeRow, list[int]]:
    return {row: served.answer_alone(row) for row in make_rows(served.prompts, 14, seed=1)}


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[CacheShape]:
    """Those of the caches that are made."""
    made, make = list[CacheShape](), KVCache.from_config

    def record(shape: CacheShape, *arguments: Any) -> KVCache:
        made.append(shape)
        return make(shape, *arguments)

    monkeypatch.setattr(KVCache, "from_config", record)
    return made


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_every_family_answers_many_users_as_one(
    tiny_family: Callable[[str], Path], conversations: list[Example], model_type: str
) -> None:
    served = Served(tiny_family(model_type), conversations)
    rows = make_rows(served.prompts, 6, seed=1, longest=4)
    answers = answer_together(ContinuousBatch(served.generator, served.ranks), rows, seed=2)
    assert answers == {row: served.answer_alone(row) for row in rows}


def test_rows_that_join_and_leave_get_the_tokens_of_rows_alone(
    served: Served, expected: Mapping[DecodeRow, list[int]], shapes: list[CacheShape]
) -> None:
    rows = list(expected)
    assert answer_together(ContinuousBatch(served.generator, served.ranks), rows, seed=2) == expected
    assert {shape.num_rows for shape in shapes} >= {1, 2, 4, 8}  # they moved
    # Negative controls: a mask of other ranks, and none.
    wrong = ContinuousBatch(served.generator, served.ranks)
    wrong.rank_masks[:2] = wrong.rank_masks[:2].flip(0)
    answers = answer_together(wrong, rows, seed=2)
    assert {row.adapter for row in rows if answers[row] != expected[row]} == {0, 1}
    wrong.rank_masks.fill_(False)
    answers = answer_together(wrong, rows, seed=3)
    assert None in {row.adapter for row in rows if answers[row] != expected[row]}


def test_rows_of_any_room_answer_together(
    served: Served, expected: Mapping[DecodeRow, list[int]], shapes: list[CacheShape]
) -> None:
    rows = {row: row for row in list(expected)[:5]}
    for long, limit in zip(list(expected)[5:8], (600, 5000, 500), strict=True):  # the first tokens of long answers
        rows[DecodeRow(long.prompt, long.adapter, replace(long.sampling, max_new_tokens=limit))] = long
    batch = ContinuousBatch(served.generator, served.ranks)
    assert batch.select(list(rows)) == list(rows)
    batch.join(list(rows))
    assert sorted(shape.num_slots for shape in shapes) == [512, 2048, 8192]
    tokens = {row: list[int]() for row in rows}
    for _ in range(9):
        for row, token in batch.step():
            tokens[row].append(token)
            if len(tokens[row]) == rows[row].sampling.max_new_tokens:
                batch.leave(row)
    assert tokens == {row: expected[short] for row, short in rows.items()}


def test_a_row_that_moves_takes_all_its_keys_and_values(served: Served) -> None:
    rows = [DecodeRow(served.prompts[i], 0, SamplingParams(max_new_tokens=20)) for i in (0, 2)]
    batch = ContinuousBatch(served.generator, served.ranks)
    pool = batch._pools[0]
    batch.join(rows[:1])
    batch.step()
    pool.advance()
    old, length = pool._cache, len(rows[0].prompt.input_ids) + 1
    assert old is not None
    assert all(layer[0, length - 1].any() for layer in old.layers)
    batch.join(rows[1:])
    new = pool._cache
    assert new is not None
    assert new is not old
    for before, after in zip(old.layers, new.layers, strict=True):
        assert torch.equal(after[0, :length], before[0, :length])
    assert torch.equal(new.logits[0], old.logits[0])


def test_one_adapter_alone_and_the_base_model_alone_need_no_mask(
    served: Served, expected: Mapping[DecodeRow, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, step = list[tuple[bool, bool]](), Generator.decode_step

    def record(self: Generator, *arguments: Any, use_adapter: bool, rank_mask: Any) -> Any:
        kinds.append((use_adapter, rank_mask is not None))
        return step(self, *arguments, use_adapter=use_adapter, rank_mask=rank_mask)

    def answer(generator: Generator, ranks: Sequence[int], *adapters: int | None) -> set[tuple[bool, bool]]:
        long = [row for row in expected if len(expected[row]) > 1]
        rows = [next(row for row in long if row.adapter == adapter) for adapter in adapters]
        kinds.clear()
        batch = ContinuousBatch(generator, ranks)
        batch.join(rows)
        assert batch.step() + batch.step() == [(row, expected[row][i]) for i in range(2) for row in rows]
        return set(kinds)

    monkeypatch.setattr(Generator, "decode_step", record)
    assert answer(served.generator, served.ranks, None) == {(False, False)}
    assert answer(served.generator, served.ranks, 1) == {(True, True)}
    assert answer(served.alone[0], served.ranks[:1], 0) == {(True, False)}
    assert answer(served.alone[0], served.ranks[:1], 0, None) == {(True, True)}


def test_steps_leave_a_core_to_other_threads_and_prompts_do_not(
    served: Served, expected: Mapping[DecodeRow, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, counts = torch.get_num_threads(), list[tuple[str, int]]()

    def record(name: str) -> Callable[..., Any]:
        method = getattr(Generator, name)

        def call(*arguments: Any, **options: Any) -> Any:
            counts.append((name, torch.get_num_threads()))
            return method(*arguments, **options)

        return call

    for name in ("prefill_rows", "decode_step"):
        monkeypatch.setattr(Generator, name, record(name))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    torch.set_num_threads(3)
    try:
        batch, row = ContinuousBatch(served.generator, served.ranks), next(row for row in expected if row.adapter == 0)
        batch.join([row])
        batch.step()
        batch.step()
    finally:
        torch.set_num_threads(before)
    assert counts == [("prefill_rows", 3), ("decode_step", 2)]


def test_rows_wait_where_memory_is_short_and_those_that_run_go_on(
    served: Served, expected: Mapping[DecodeRow, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, most = KVCache.from_config, 2

    def refuse(shape: CacheShape, *arguments: Any) -> KVCache:
        if shape.num_rows > most:
            raise torch.OutOfMemoryError("short")
        return make(shape, *arguments)

    monkeypatch.setattr(KVCache, "from_config", refuse)
    batch = ContinuousBatch(served.generator, served.ranks)
    rows = list(expected)[:6]
    assert batch.select(rows) == rows[:2]
    assert answer_together(batch, rows, seed=2) == {row: expected[row] for row in rows}
    # No memory at all: the row that asks gets the error, and the batch is as it was.
    batch.drop_idle_memory()
    most = 0
    assert batch.select(rows) == rows[:1]
    with pytest.raises(torch.OutOfMemoryError, match="1 more rows of 512 tokens"):
        batch.join(rows[:1])
    assert batch.step() == []
    most = 32
    batch.drop_idle_memory()
    assert batch.select(rows) == rows
    # None to copy the rows that run: they answer before others join.
    select = torch.Tensor.index_select

    def refuse_copies(self: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if self.ndim == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return select(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "index_select", refuse_copies)
    batch.drop_idle_memory()
    batch.join(rows[:1])
    assert batch.select(rows[1:]) == []
    assert batch.step() == [(rows[0], expected[rows[0]][0])]


def test_a_room_without_memory_waits_until_the_others_are_empty(
    served: Served, expected: Mapping[DecodeRow, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, batch = KVCache.from_config, ContinuousBatch(served.generator, served.ranks)

    def make_one(shape: CacheShape, *arguments: Any) -> KVCache:
        if any(pool.num_rows for pool in batch._pools if pool.num_slots != shape.num_slots):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return make(shape, *arguments)

    monkeypatch.setattr(KVCache, "from_config", make_one)
    small, later, like_large = list(expected)[:3]
    large = replace(like_large, sampling=replace(like_large.sampling, max_new_tokens=1000))
    with pytest.raises(torch.OutOfMemoryError):
        batch.join([small, large])
    assert batch.step() == []
    assert batch.select([small, large, later]) == [small]
    batch.join([small])
    assert batch.select([later]) == [later]
    assert batch.select([large, later]) == []  # who came later does not pass
    assert batch.step() == [(small, expected[small][0])]
    batch.leave(small)
    assert batch.select([large, later]) == [large]
    batch.join([large])
    assert batch.step() == [(large, expected[like_large][0])]


def test_a_prefill_without_memory_leaves_the_batch_as_it_was(
    served: Served, expected: Mapping[DecodeRow, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in expected if len(expected[row]) > 3][:4]
    batch, tokens = ContinuousBatch(served.generator, served.ranks), {row: list[int]() for row in rows}

    def step() -> None:
        for row, token in batch.step():
            tokens[row].append(token)

    batch.join(rows[:1])
    step()
    prefill = Generator.prefill_rows
    with monkeypatch.context() as patch:

        def run_out(self: Generator, *arguments: Any, **options: Any) -> None:
            prefill(self, *arguments, **options)
            raise torch.OutOfMemoryError("short")

        patch.setattr(Generator, "prefill_rows", run_out)
        with pytest.raises(torch.OutOfMemoryError, match="short"):
            batch.join(rows[1:])
    step()
    assert [len(ids) for ids in tokens.values()] == [2, 0, 0, 0]
    batch.join(rows[1:])
    step()
    assert tokens == {row: expected[row][: 3 if row is rows[0] else 1] for row in rows}


def test_a_step_out_of_memory_is_tried_again(
    served: Served, expected: Mapping[DecodeRow, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [row for row in expected if len(expected[row]) > 3]
    row, drawn = (next(row for row in long if bool(row.sampling.temperature) is is_drawn) for is_drawn in (False, True))
    large = replace(drawn, sampling=replace(drawn.sampling, max_new_tokens=1000))  # in another room
    batch, tokens = ContinuousBatch(served.generator, served.ranks), list[int]()
    batch.join([row, large])
    tokens.append(batch.step()[0][1])
    with monkeypatch.context() as patch:

        def run_out(*_: Any, **__: Any) -> None:
            raise torch.OutOfMemoryError("short")

        patch.setattr(Generator, "decode_step", run_out)
        with pytest.raises(torch.OutOfMemoryError):
            batch.step()
        patch.undo()
        patch.setattr("lorgnette.inference.continuous_batch.sample_tokens", run_out)  # where one room has picked
        with pytest.raises(torch.OutOfMemoryError):
            batch.step()
    (_, second), (_, drawn_second) = batch.step()
    tokens += [second, batch.step()[0][1]]
    assert tokens == expected[row][:3]
    assert drawn_second == expected[drawn][1]


def test_newcomers_do_not_hold_up_those_who_are_answered(served: Served) -> None:
    short = served.prompts[2]
    long = replace(short, input_ids=short.input_ids.repeat(3000 // len(short.input_ids)))
    sampling, batch = SamplingParams(max_new_tokens=4), ContinuousBatch(served.generator, served.ranks)
    rows = [DecodeRow(long, None, sampling) for _ in range(4)]
    assert batch.select(rows) == rows
    batch.join([speaker := DecodeRow(short, None, sampling)])
    assert batch.select(rows) == rows[:1]
    assert 2 * len(long.input_ids) > MAX_JOIN_TOKENS
    batch.leave(speaker)
    assert batch.select(rows) == rows


def test_a_full_room_lets_others_pass(served: Served) -> None:
    prompt, batch = served.prompts[2], ContinuousBatch(served.generator, served.ranks)
    large = [DecodeRow(prompt, None, SamplingParams(max_new_tokens=8000)) for _ in range(9)]
    small = DecodeRow(prompt, None, SamplingParams(max_new_tokens=4))
    assert batch.select([*large, small]) == [*large[:8], small]
    assert batch.select([small, *large]) == [small, *large[:8]]


def compute_logits(generator: Generator, row: DecodeRow, tokens: Sequence[int], adapter: int | None) -> torch.Tensor:
    """Before each of the tokens."""
    use_adapter = adapter is not None
    cache = generator.prefill([row.prompt], len(tokens), use_adapter=use_adapter)
    logits = [cache.logits[:1].clone()]
    for token in tokens[:-1]:
        input_ids = torch.tensor([token], device=generator.device)
        logits.append(generator.decode_step(cache, input_ids, use_adapter=use_adapter).clone())
    return torch.cat(logits)


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
def test_captured_steps_answer_many_users_as_one(
    tiny_family: Callable[[str], Path], conversations: list[Example], model_type: str, dtype: torch.dtype,
    shapes: list[CacheShape],
) -> None:  # fmt: skip
    """In fp32 the tokens are equal. In half precision each is among the likeliest in fp32, within twice the rounding
    of logits."""
    folder, device = tiny_family(model_type), torch.device("cuda")
    served, exact = (Served(folder, conversations, device, each) for each in (dtype, torch.float32))
    rows = make_rows(served.prompts, 60, seed=1, longest=24)
    batch = ContinuousBatch(served.generator, served.ranks)
    batch.capture_steps()
    answers = answer_together(batch, rows, seed=2)
    assert {(shape.num_rows, shape.num_slots) for shape in shapes} >= {(8, 512), (32, 512)}
    if dtype == torch.float32:
        assert answers == {row: exact.answer_alone(row) for row in rows}
        return
    gaps, errors, others = [], [], []
    for row, tokens in answers.items():
        if row.sampling.temperature is None:
            rounded = compute_logits(served.alone[row.adapter or 0], row, tokens, row.adapter)
            for other in (None, 0, 1):
                logits = compute_logits(exact.alone[other or 0], row, tokens, other)
                gap = logits.max(-1).values - logits.gather(1, torch.tensor(tokens, device=device)[:, None])[:, 0]
                (gaps if other == row.adapter else others).append(gap.max().item())
                errors += [(logits - rounded).abs().max().item()] if other == row.adapter else []
    assert max(gaps) <= 2 * max(errors)
    assert max(others) > 10 * max(errors)  # negative control: the answers of other models


@NEEDS_CUDA
def test_the_host_does_not_wait_within_a_captured_step(
    tiny_family: Callable[[str], Path], conversations: list[Example]
) -> None:
    """But for the tokens, by an event."""
    served = Served(tiny_family("qwen2_vl"), conversations, torch.device("cuda"), torch.bfloat16)
    batch = ContinuousBatch(served.generator, served.ranks)
    batch.capture_steps()
    sampling = [SamplingParams(99), SamplingParams(99, temperature=1.0, top_p=0.9)]
    rows = [DecodeRow(served.prompts[0], adapter, each) for adapter in (None, 0, 1) for each in sampling]
    batch.join(rows)
    for _ in range(3):
        batch.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            assert len(batch.step()) == len(rows)
        batch.leave(rows[0])
        assert len(batch.step()) == len(rows) - 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


@NEEDS_CUDA
def test_idle_memory_is_given_back(tiny_family: Callable[[str], Path], conversations: list[Example]) -> None:
    """Also that of graphs, while rows are answered; steps are captured anew after it."""
    served = Served(tiny_family("qwen2_vl"), conversations, torch.device("cuda"))
    batch = ContinuousBatch(served.generator, served.ranks)
    batch.capture_steps()
    rows = make_rows(served.prompts, 12, seed=1, longest=24)
    expected = {row: served.answer_alone(row) for row in rows}
    for _ in range(2):
        batch.join([speaker := DecodeRow(served.prompts[0], 0, SamplingParams(max_new_tokens=600))])
        batch.step()
        used = torch.cuda.memory_allocated()
        batch.drop_idle_memory()
        assert torch.cuda.memory_allocated() < used
        batch.leave(speaker)
        assert answer_together(batch, rows, seed=2) == expected
        batch.drop_idle_memory()
        assert answer_together(batch, rows, seed=3) == expected
        batch.capture_steps()
