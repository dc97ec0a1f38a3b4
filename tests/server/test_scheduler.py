"""Requests join and leave on the device thread; whatever happens there, every stream ends and says how."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lorgnette.data import load_resized
from lorgnette.engine.loading import load_fast_model
from lorgnette.errors import LorgnetteError
from lorgnette.features.decode_pool import Pixels
from lorgnette.features.image_features import Features
from lorgnette.inference.continuous_batch import DecodeRow
from lorgnette.inference.decode import generate_answers
from lorgnette.inference.generator import Generator
from lorgnette.inference.loading import ModelSpec
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.report.console import Terminal
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.server.models import ModelSet, ServedModel, load_models
from lorgnette.server.scheduler import GenerationError, QueueFullError, Scheduler, TokenStream
from lorgnette.types import Encoded, Example, ImageGrid

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
END = 99
FEATURES: Any = SimpleNamespace(encode=lambda pixels: None, clear=lambda: None, num_bytes=0)


def make_row(*token_ids: int, max_new_tokens: int = 50) -> DecodeRow:
    """A row whose answer is these tokens, and then the end token."""
    ids = np.array(token_ids, np.int32)
    prompt = Encoded(Example("0", (), Path("rows"), 1), ids, ids, np.zeros((3, len(ids)), np.int32), (), ())
    return DecodeRow(prompt, None, SamplingParams(max_new_tokens))


@dataclass
class StubBatch:
    """Rows that answer with their prompt. gate: set while steps may run."""

    num_rows: int = 4
    max_tokens: int = 1000
    rows: dict[DecodeRow, int] = field(default_factory=dict)
    joined: list[list[DecodeRow]] = field(default_factory=list)
    num_drops: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    on_join: Callable[[Sequence[DecodeRow]], None] = lambda rows: None
    on_step: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.gate.set()

    def select(self, waiting: Sequence[DecodeRow]) -> list[DecodeRow]:
        return list(waiting[: self.num_rows - len(self.rows)])

    def join(self, rows: Sequence[DecodeRow]) -> None:
        self.on_join(rows)
        self.joined.append(list(rows))
        self.rows |= dict.fromkeys(rows, 0)

    def step(self) -> list[tuple[DecodeRow, int]]:
        self.gate.wait(10)
        self.on_step()
        tokens = [(row, [*row.prompt.input_ids.tolist(), END][number]) for row, number in self.rows.items()]
        self.rows = {row: number + 1 for row, number in self.rows.items()}
        return tokens

    def leave(self, row: DecodeRow) -> None:
        del self.rows[row]

    def drop_idle_memory(self) -> None:
        self.num_drops += 1


@asynccontextmanager
async def run(batch: StubBatch, **options: Any) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(batch, FEATURES, [END], **options)  # type: ignore[arg-type]
    try:
        scheduler.wait_until_ready()
        yield scheduler
    finally:
        batch.gate.set()
        scheduler.close()
    if scheduler.state == "lost":
        scheduler._thread.join(10)
    assert not scheduler._thread.is_alive()


async def read(stream: TokenStream) -> list[int]:
    return [token_id async for ids in stream for token_id in ids]


async def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not happen")


def fail(error: BaseException) -> Callable[..., None]:
    def raise_error(*_: object) -> None:
        raise error

    return raise_error


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))  # type: ignore[arg-type]


def test_answers_end_at_the_end_token_or_the_limit() -> None:
    async def scene() -> None:
        async with run(StubBatch()) as scheduler:
            streams = [
                scheduler.submit(make_row(1, 2, 3), {}),
                scheduler.submit(make_row(4, 5, 6, max_new_tokens=2), {}),
                scheduler.submit(make_row(7, max_new_tokens=1), {}),
                scheduler.submit(make_row(8, max_new_tokens=2), {}),
                scheduler.submit(make_row(), {}),
            ]
            assert await asyncio.gather(*map(read, streams)) == [[1, 2, 3], [4, 5], [7], [8], []]
            assert [stream.finish_reason for stream in streams] == ["stop", "length", "length", "stop", "stop"]
            assert [stream.num_tokens for stream in streams] == [3, 2, 1, 1, 0]
            stats = scheduler.read_stats()
            assert stats.outcomes == {"stop": 3, "length": 2}
            assert (stats.waiting, stats.running, stats.prompt_tokens, stats.answer_tokens) == (0, 0, 8, 7)
            assert stats.first_token.count == 5
            assert stats.token.count == 3 + 1 + 0 + 1 + 0

    play(scene)


def test_tokens_that_wait_come_together() -> None:
    async def scene() -> None:
        async with run(StubBatch()) as scheduler:
            stream = scheduler.submit(make_row(1, 2, 3, 4), {})
            await wait_until(lambda: stream.finish_reason is not None)
            assert [ids async for ids in stream] == [[1, 2, 3, 4]]

    play(scene)


def test_a_request_joins_while_others_are_answered() -> None:
    async def scene() -> None:
        batch = StubBatch()
        async with run(batch) as scheduler:
            batch.on_step = batch.gate.clear  # one step
            pixels: Any = {"image": np.zeros(3)}
            first = scheduler.submit(make_row(*range(40)), pixels)
            assert await anext(first) == [0]
            assert [request.pixels for request in scheduler._running.values()] == [{}]  # freed with the first token
            second = scheduler.submit(make_row(50), {})
            batch.on_step = lambda: None
            batch.gate.set()
            assert await read(second) == [50]
            assert await read(first) == list(range(1, 40))
            assert [len(rows) for rows in batch.joined] == [1, 1]

    play(scene)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_those_that_run_go_on_while_others_join(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newcomers join together, after about as many steps as their prefill takes. Otherwise each costs a prefill."""
    monkeypatch.setattr("lorgnette.server.scheduler._JOIN_SHARE", share)

    async def scene() -> None:
        batch, steps = StubBatch(num_rows=50), list[int]()
        async with run(batch) as scheduler:
            batch.gate.clear()
            with scheduler._condition:  # they join together
                runs = [scheduler.submit(make_row(*range(300), max_new_tokens=200), {}) for _ in range(10)]
            batch.on_join = lambda rows: (steps.append(0), time.sleep(0.03))[1]
            batch.on_step = lambda: (steps.append(1), time.sleep(0.002))[1]
            batch.gate.set()
            for number in range(16):
                await asyncio.sleep(0.01)
                runs.append(scheduler.submit(make_row(number), {}))
            await asyncio.gather(*map(read, runs))
        between = [len(text) for text in "".join(map(str, steps)).split("0")[2:-1]]
        assert (sum(between) > 4 * len(between)) == (share < 1), between

    play(scene)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_those_that_wait_join_together_with_those_that_are_read(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for longer than `seconds`."""
    monkeypatch.setattr("lorgnette.server.scheduler._MAX_PAUSE_SECONDS", seconds)

    async def scene() -> None:
        batch = StubBatch()
        async with run(batch) as scheduler:
            with scheduler.expect_request(), scheduler.expect_request():
                first = scheduler.submit(make_row(1), {})
                await (wait_until(lambda: bool(batch.joined)) if not seconds else asyncio.sleep(0.05))
                second = scheduler.submit(make_row(2), {})
            start = time.perf_counter()
            assert (await read(first), await read(second)) == ([1], [2])
            assert time.perf_counter() - start < 2
        assert [len(rows) for rows in batch.joined] == ([2] if seconds else [1, 1])

    play(scene)


def test_a_request_that_is_read_too_slowly_is_not_waited_for() -> None:
    async def scene() -> None:
        batch = StubBatch()
        async with run(batch) as scheduler:
            with scheduler.expect_request():
                assert await read(scheduler.submit(make_row(1), {})) == [1]
                with pytest.raises(ZeroDivisionError), scheduler.expect_request():
                    raise ZeroDivisionError  # it is refused
        assert scheduler._num_expected == 0

    play(scene)


def test_a_full_queue_refuses_and_goes_on() -> None:
    async def scene() -> None:
        batch = StubBatch(num_rows=1)
        batch.gate.clear()
        async with run(batch, max_waiting=2) as scheduler:
            first = scheduler.submit(make_row(1), {})
            await wait_until(lambda: scheduler.read_stats().running == 1)
            waiting = [scheduler.submit(make_row(number), {}) for number in (2, 3)]
            with pytest.raises(QueueFullError):
                scheduler.submit(make_row(4), {})
            batch.gate.set()
            assert await asyncio.gather(*map(read, [first, *waiting])) == [[1], [2], [3]]
            assert scheduler.read_stats().outcomes == {"stop": 3, "refused": 1}

    play(scene)


def test_a_cancelled_request_frees_its_row_or_its_place() -> None:
    async def scene() -> None:
        batch = StubBatch(num_rows=1)
        batch.gate.clear()
        async with run(batch) as scheduler:
            first, second, third = (scheduler.submit(make_row(*range(n, n + 9)), {}) for n in (10, 20, 30))
            await wait_until(lambda: scheduler.read_stats().running == 1)
            second.cancel()
            assert scheduler.read_stats().waiting == 1  # at once
            first.cancel("stop")
            batch.gate.set()
            assert await read(third) == list(range(30, 39))
            assert await read(first) == await read(second) == []
            assert first.finish_reason is second.finish_reason is None
            assert scheduler.read_stats().outcomes == {"stop": 2, "cancelled": 1}
            assert len(batch.joined) == 2
            third.cancel()  # after its end
            assert scheduler.read_stats().outcomes["cancelled"] == 1

    play(scene)


def test_a_row_that_does_not_fit_alone_fails_alone() -> None:
    async def scene() -> None:
        batch = StubBatch()
        too_large = make_row(5, 5)

        def refuse(rows: Sequence[DecodeRow]) -> None:
            if too_large in rows:
                raise torch.OutOfMemoryError("CUDA out of memory")

        batch.on_join = refuse
        batch.gate.clear()
        async with run(batch) as scheduler:
            first = scheduler.submit(make_row(1), {})
            await wait_until(lambda: scheduler.read_stats().running == 1)
            large, last = scheduler.submit(too_large, {}), scheduler.submit(make_row(2), {})
            batch.gate.set()
            assert await read(first) == [1]
            with pytest.raises(GenerationError, match="out of memory") as info:
                await read(large)
            assert info.value.code == "out_of_memory"
            assert await read(last) == [2]
            assert scheduler.state == "ready"
            num_drops = batch.num_drops
            assert num_drops >= 2

            def refuse_at_first(rows: Sequence[DecodeRow]) -> None:
                if batch.num_drops == num_drops:
                    raise torch.OutOfMemoryError("CUDA out of memory")

            batch.on_join = refuse_at_first
            assert await read(scheduler.submit(make_row(3), {})) == [3]  # with the memory that was freed
            assert scheduler.read_stats().outcomes == {"stop": 3, "error": 1}

    play(scene)


def test_rows_that_do_not_fit_together_wait_for_room() -> None:
    async def scene() -> None:
        batch = StubBatch()

        def refuse(rows: Sequence[DecodeRow]) -> None:
            if len(batch.rows) + len(rows) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

        batch.on_join = refuse
        async with run(batch) as scheduler:
            streams = [scheduler.submit(make_row(number, number), {}) for number in range(7)]
            assert await asyncio.gather(*map(read, streams)) == [[number] * 2 for number in range(7)]
            order = [int(row.prompt.input_ids[0]) for rows in batch.joined for row in rows]
            assert order == list(range(7))  # nobody is overtaken

    play(scene)


def test_a_request_without_room_whose_client_has_gone_does_not_join_later() -> None:
    async def scene() -> None:
        batch = StubBatch()
        batch.gate.clear()
        async with run(batch) as scheduler:
            first = scheduler.submit(make_row(1, 2), {})
            await wait_until(lambda: scheduler.read_stats().running == 1)
            second = scheduler.submit(make_row(3), {})

            def refuse(rows: Sequence[DecodeRow]) -> None:
                second.cancel()  # during the prefill
                raise torch.OutOfMemoryError("CUDA out of memory")

            batch.on_join = refuse
            batch.gate.set()
            assert await read(first) == [1, 2]
            batch.on_join = lambda rows: None
            assert await read(scheduler.submit(make_row(4), {})) == [4]
            assert [row.prompt.input_ids[0] for rows in batch.joined for row in rows] == [1, 4]
            assert scheduler.read_stats().outcomes == {"stop": 2, "cancelled": 1}
            assert scheduler.read_stats().waiting == 0

    play(scene)


def refuse_large_steps(batch: StubBatch, num_rows: int) -> Callable[[], None]:
    """A step of more rows has no memory, also when some was freed."""

    def run_out() -> None:
        if len(batch.rows) > num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return run_out


def test_without_memory_for_a_step_the_newest_waits_and_the_others_go_on() -> None:
    async def scene() -> None:
        batch = StubBatch(num_rows=4)
        batch.on_step = batch.gate.clear
        async with run(batch) as scheduler:
            streams = [scheduler.submit(make_row(*range(30)), {})]
            assert await anext(streams[0]) == [0]
            streams += [scheduler.submit(make_row(number, number), {}) for number in (1, 2)]
            batch.on_step = refuse_large_steps(batch, 1)
            batch.gate.set()
            assert await asyncio.gather(*map(read, streams)) == [[*range(1, 30)], [1, 1], [2, 2]]
            assert scheduler.read_stats().outcomes == {"stop": 3}
            order = [int(row.prompt.input_ids[0]) for rows in batch.joined for row in rows]
            assert order == [0, 1, 2, 1, 2, 2]  # nobody is overtaken

    play(scene)


def test_without_memory_for_a_step_the_newest_fails_if_it_has_begun() -> None:
    async def scene() -> None:
        batch = StubBatch(num_rows=3)
        batch.gate.clear()
        async with run(batch) as scheduler:
            streams = [scheduler.submit(make_row(number, *range(30)), {}) for number in (41, 42, 43)]
            batch.on_step = batch.gate.clear
            batch.gate.set()
            for number, stream in zip((41, 42, 43), streams, strict=True):
                assert await anext(stream) == [number]
            batch.on_step = refuse_large_steps(batch, 1)
            batch.gate.set()
            assert await read(streams[0]) == [*range(30)]
            for stream in streams[1:]:
                with pytest.raises(GenerationError, match="ask again") as info:
                    await read(stream)
                assert info.value.code == "out_of_memory"
            assert await read(scheduler.submit(make_row(3), {})) == [3]  # who comes later joins
            assert scheduler.read_stats().outcomes == {"stop": 2, "error": 2}

    play(scene)


def test_without_memory_for_a_step_of_one_row_it_fails() -> None:
    async def scene() -> None:
        batch = StubBatch(num_rows=2)
        batch.on_step = refuse_large_steps(batch, 0)
        async with run(batch) as scheduler:
            for result in await asyncio.gather(
                *(read(scheduler.submit(make_row(number), {})) for number in (1, 2)), return_exceptions=True
            ):
                assert isinstance(result, GenerationError)
            batch.on_step = fail_once(torch.OutOfMemoryError("CUDA out of memory"), batch)
            assert await read(scheduler.submit(make_row(3), {})) == [3]
            assert (scheduler.state, batch.rows) == ("ready", {})

    play(scene)


def fail_once(error: BaseException, batch: StubBatch) -> Callable[[], None]:
    def raise_error() -> None:
        batch.on_step = lambda: None
        raise error

    return raise_error


@pytest.mark.parametrize("place", ["on_join", "on_step"])
def test_an_exception_of_the_device_ends_all_streams(place: str) -> None:
    async def scene() -> None:
        batch, told = StubBatch(num_rows=2), list[GenerationError]()
        batch.gate.clear()
        async with run(batch, on_lost=told.append) as scheduler:
            with scheduler._condition:  # they join together
                streams = [scheduler.submit(make_row(number), {}) for number in range(2)]
            await wait_until(lambda: scheduler.read_stats().running == 2)
            streams += [scheduler.submit(make_row(number), {}) for number in range(2)]
            setattr(batch, place, fail(RuntimeError("CUDA error: an illegal memory access\nmore lines")))
            batch.gate.set()
            results = await asyncio.gather(*map(read, streams), return_exceptions=True)
            errors = [result for result in results if isinstance(result, GenerationError)]
            assert len(errors) == (2 if place == "on_join" else 4)
            assert {error.code for error in errors} == {"device_lost"}
            assert "CUDA error: an illegal memory access" in errors[0].message
            assert "\n" not in errors[0].message
            assert scheduler.state == "lost"
            await wait_until(lambda: bool(told))  # the device thread tells it behind the streams
            assert [error.__cause__ for error in told] == [scheduler._error]
            with pytest.raises(GenerationError, match="restart"):
                scheduler.submit(make_row(1), {})
        assert scheduler.state == "lost"

    play(scene)


@pytest.mark.parametrize("place", ["on_join", "on_step"])
def test_a_device_that_hangs_ends_all_streams(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.server.scheduler._WATCH_SECONDS", 0.05)

    async def scene() -> None:
        batch, answers = StubBatch(num_rows=1), threading.Event()
        told = list[GenerationError]()
        async with run(batch, max_step_seconds=0.5, on_lost=told.append) as scheduler:
            assert await read(scheduler.submit(make_row(1, 2), {})) == [1, 2]
            await asyncio.sleep(0.6)  # without work it does not count
            assert scheduler.state == "ready"
            setattr(batch, place, lambda *_: answers.wait(10))
            streams = [scheduler.submit(make_row(number), {}) for number in range(2)]
            for stream in streams:
                with pytest.raises(GenerationError, match="does not answer") as info:
                    await read(stream)
                assert info.value.code == "device_lost"
            assert scheduler.state == "lost"
            assert len(told) == 1
            scheduler.close()  # it does not wait for the thread
            assert scheduler._thread.is_alive()
            answers.set()
            scheduler._thread.join(10)

    play(scene)


def test_closing_ends_all_streams() -> None:
    async def scene() -> None:
        batch = StubBatch(num_rows=1)
        batch.gate.clear()
        async with run(batch) as scheduler:
            streams = [scheduler.submit(make_row(1, 2, 3), {}) for _ in range(3)]
            await wait_until(lambda: scheduler.read_stats().running == 1)
            threading.Timer(0.05, batch.gate.set).start()
            scheduler.close()
            for stream in streams:
                with pytest.raises(GenerationError, match="stops") as info:
                    await read(stream)
                assert info.value.code == "closed"
            assert scheduler.state == "closed"
            with pytest.raises(GenerationError, match="stops"):
                scheduler.submit(make_row(1), {})

    play(scene)


def test_an_answer_s_memory_goes_with_its_reader() -> None:
    """No cycle of references keeps it until the garbage collector runs."""

    async def scene() -> None:
        async with run(StubBatch()) as scheduler:
            stream = scheduler.submit(make_row(1, 2), {})
            assert await read(stream) == [1, 2]
            await wait_until(lambda: not scheduler.read_stats().running)
            await read(scheduler.submit(make_row(3), {}))  # the device thread's variables are another's
            kept = weakref.ref(stream)
            del stream
            assert kept() is None

    gc.disable()
    try:
        play(scene)
    finally:
        gc.enable()


def test_nothing_is_answered_before_the_warm_up() -> None:
    async def scene() -> None:
        may_end = threading.Event()

        def warm_up() -> list[str]:
            may_end.wait(10)
            return ["a remark"]

        scheduler = Scheduler(StubBatch(), FEATURES, [END], warm_up=warm_up)  # type: ignore[arg-type]
        assert scheduler.state == "loading"
        with pytest.raises(GenerationError) as info:
            scheduler.submit(make_row(1), {})
        assert info.value.code == "loading"
        may_end.set()
        assert scheduler.wait_until_ready() == ["a remark"]
        assert await read(scheduler.submit(make_row(1), {})) == [1]
        scheduler.close()

    play(scene)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), LorgnetteError, "out of memory at the first answer"),
        (LorgnetteError("the weights are broken"), LorgnetteError, "the weights are broken"),
        (ValueError("a defect"), ValueError, "a defect"),
    ],
)
def test_a_warm_up_that_fails_says_why(error: Exception, expected: type[Exception], message: str) -> None:
    scheduler = Scheduler(StubBatch(), FEATURES, [END], warm_up=fail(error))  # type: ignore[arg-type]
    with pytest.raises(expected, match=message):
        scheduler.wait_until_ready()
    assert scheduler.state == "lost"
    scheduler.close()


def test_a_wait_for_the_model_hears_ctrl_c(lost_signal: Callable[[], AbstractContextManager[None]]) -> None:
    is_warm = threading.Event()

    def warm_up() -> list[str]:
        is_warm.wait(20)
        return []

    scheduler = Scheduler(StubBatch(), FEATURES, [END], warm_up=warm_up)  # type: ignore[arg-type]
    with lost_signal():
        scheduler.wait_until_ready()
    is_warm.set()
    scheduler.close()


def test_a_reader_that_is_gone_frees_its_row() -> None:
    """Its event loop has ended without a word."""
    batch = StubBatch(num_rows=1)
    batch.gate.clear()
    scheduler = Scheduler(batch, FEATURES, [END])  # type: ignore[arg-type]
    scheduler.wait_until_ready()

    async def leave() -> None:
        scheduler.submit(make_row(*range(40)), {})
        scheduler.submit(make_row(*range(40)), {})
        await wait_until(lambda: scheduler.read_stats().running == 1)

    play(leave)
    batch.gate.set()

    async def stay() -> None:
        assert await read(scheduler.submit(make_row(1), {})) == [1]

    play(stay)
    assert scheduler.read_stats().outcomes == {"cancelled": 2, "stop": 1}
    scheduler.close()


def test_many_tasks_come_and_go() -> None:
    """Answers are whole and never mixed, whoever joins or leaves meanwhile."""

    async def scene() -> None:
        batch = StubBatch(num_rows=8)
        async with run(batch) as scheduler:

            async def ask(number: int) -> None:
                await asyncio.sleep(number % 7 / 1000)
                answer = [number * 100 + i for i in range(number % 11) if (number * 100 + i) != END]
                stream = scheduler.submit(make_row(*answer), {})
                if number % 5 == 0:
                    async for _ in stream:
                        stream.cancel()
                else:
                    assert await read(stream) == answer

            await asyncio.gather(*(ask(number) for number in range(1, 61)))
            await wait_until(lambda: not scheduler.read_stats().running)
            assert not batch.rows
            assert sum(scheduler.read_stats().outcomes.values()) == 60

    play(scene)


def encode(models: ModelSet, name: str, example: Example) -> tuple[ServedModel, Encoded, dict[ImageGrid, Pixels]]:
    model = models.find(name)
    assert model is not None
    prompt = model.processor.encode(example, add_generation_prompt=True)
    resize = model.processor.image_processor.resize
    return model, prompt, {grid: load_resized(grid.image.path, resize) for grid in prompt.grids}


@pytest.fixture
def models(
    adapter_folders: dict[str, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ModelSet:
    """`captions`, `colors` and `base`, in float32 on a CPU or on the device that the test names."""
    monkeypatch.setattr("lorgnette.device.select_dtype", lambda *_: torch.float32)
    specs = {name: ModelSpec.from_names(None, folder, Terminal()) for name, folder in adapter_folders.items()}
    return load_models(specs, getattr(request, "param", "cpu"))


@pytest.mark.parametrize("models", ["cpu", pytest.param("cuda", marks=CUDA)], indirect=True)
def test_answers_of_many_equal_those_generated_alone(
    models: ModelSet, adapter_folders: dict[str, Path], conversations: list[Example]
) -> None:
    """Base model and two adapters, greedy and sampled, asked by five tasks that come and go."""
    samplings = [SamplingParams(8, 1, temperature, top_p=0.9, seed=3) for temperature in (None, 1.5)]
    examples = {example.id: example for example in (conversations[0], conversations[2], conversations[4])}
    names = [model.name for model in models.models]
    work = [(name, id_, s) for name in names for id_, s in zip(examples, [0, 1, 0], strict=True)]
    expected = dict[tuple[str, str, int], str]()
    for name, id_, number in work:
        model = models.find(name)
        assert model is not None
        saved = SavedAdapter.load(adapter_folders[name]) if name in adapter_folders else None
        features = Features(models.features._tower, model.processor.image_processor, is_live=False)
        loaded = load_fast_model(BaseCheckpoint.from_folder(BUILT_IN_MODEL), saved, features, torch.float32)
        [answer] = generate_answers(
            Generator(loaded.decoder, features), model.processor, [examples[id_]], samplings[number],
            adapter=saved and name,
        )  # fmt: skip
        expected[name, id_, number] = answer.text
    assert len(set(expected.values())) > 6

    async def scene() -> None:
        scheduler = Scheduler.from_models(models)
        assert scheduler.wait_until_ready() == []
        random.Random(0).shuffle(work)

        async def ask() -> None:
            while work:
                name, id_, number = work.pop()
                model, prompt, pixels = encode(models, name, examples[id_])
                stream = scheduler.submit(DecodeRow(prompt, model.adapter, samplings[number]), pixels)
                assert model.processor.tokenizer.decode(await read(stream)) == expected[name, id_, number]
                await asyncio.sleep(random.random() / 100)

        await asyncio.gather(*(ask() for _ in range(5)))
        assert scheduler.read_stats().outcomes.total() == len(expected)
        scheduler.close()

    play(scene)


def test_an_answer_that_begins_anew_is_the_same(models: ModelSet, conversations: list[Example]) -> None:
    """After a step without memory its image is encoded again."""

    async def scene() -> None:
        scheduler = Scheduler.from_models(models)
        scheduler.wait_until_ready()
        model, prompt, pixels = encode(models, "captions", conversations[0])
        step, sizes = scheduler._batch.step, list[int]()

        def ask(max_new_tokens: int) -> TokenStream:
            return scheduler.submit(DecodeRow(prompt, model.adapter, SamplingParams(max_new_tokens)), pixels)

        def run_out() -> list[tuple[DecodeRow, int]]:
            sizes.append(len(scheduler._running))
            if sizes[-2:] == [1, 2] or sizes[-3:] == [1, 2, 2]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step()

        expected = await read(ask(4))
        scheduler._batch.step = run_out  # type: ignore[method-assign]
        first = ask(60)
        await anext(first)
        assert await read(ask(4)) == expected
        assert len(await read(first)) == 59
        assert sizes.count(2) == 2
        scheduler.close()

    play(scene)
