"""The thread that owns the device, and the queue in front of it.

    asyncio ── submit ──▶ waiting requests ──▶ device thread: image features, prefill, decode steps ──╮
    asyncio ◀── TokenStream ◀── call_soon_threadsafe, once a step with the tokens of all rows ────────╯

Requests join and leave between two decode steps (inference/continuous_batch.py). Those that come at about the same time
join together: a prefill of many takes hardly longer than one of a single prompt. End tokens and token limits are found
here; texts and stop strings are asyncio's work.
"""

import asyncio
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import is_out_of_memory
from lorgnette.server.stats import SchedulerStats
from lorgnette.types import ImageGrid

if TYPE_CHECKING:
    from lorgnette.features.decode_pool import Pixels
    from lorgnette.features.feature_lru import FeatureLru
    from lorgnette.inference.continuous_batch import ContinuousBatch, DecodeRow
    from lorgnette.server.models import ModelSet

FinishReason = Literal["stop", "length"]
Outcome = Literal["stop", "length", "cancelled", "error"]
State = Literal["loading", "ready", "lost", "closed"]
MAX_WAITING = 64
MAX_STEP_SECONDS = 30.0
"""A GPU that takes longer for a step counts as lost."""
_JOIN_SHARE = 0.5
"""The share of the time that prefills may take while others are answered: one prompt's costs as much as ten steps. So
newcomers wait a little, and join together. They do not wait if they are more than half as many as those that run."""
_MAX_PAUSE_SECONDS = 0.25
"""How long a request that could join waits at most for others that are being read. While a join's kernels are launched,
Python's lock keeps the threads that read from going on: the others would come one after the other, a join each."""
_WATCH_SECONDS = 1.0
_CLOSE_SECONDS = 10.0


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class GenerationError(Exception):
    """An answer cannot be generated, or not to its end.

    code: out_of_memory, of this request alone; loading, device_lost, closed: of all.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class TokenStream:
    """The tokens of one answer: an async iterator of lists of new token ids, without the end token.

    Use it on the thread of the event loop that submitted the request. Tokens that wait come together. Raises
    GenerationError where the answer breaks off. finish_reason: None before the end, and of a cancelled answer.
    num_tokens: those that were generated so far, without the end token.
    """

    def __init__(self, on_cancel: Callable[[Outcome], None]) -> None:
        self.finish_reason: FinishReason | None = None
        self.num_tokens = 0
        self._on_cancel: Callable[[Outcome], None] | None = on_cancel  # None after the end
        self._token_ids: list[int] = []
        self._error: GenerationError | None = None
        self._has_news = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[int]:
        if not self._token_ids and self._on_cancel is not None:
            self._has_news.clear()
            await self._has_news.wait()
        if not self._token_ids and self._on_cancel is None:
            raise StopAsyncIteration if self._error is None else self._error
        token_ids, self._token_ids = self._token_ids, []
        return token_ids

    def wake(self) -> None:
        """Give whoever waits for tokens a list without any."""
        self._has_news.set()

    def cancel(self, outcome: Outcome = "cancelled") -> None:
        """End the answer; its row is free after the current step. outcome: for the numbers; "stop" if it is complete.
        Does nothing after the end."""
        if self._on_cancel is not None:
            on_cancel, self._on_cancel = self._on_cancel, None
            self._has_news.set()
            on_cancel(outcome)

    def receive(self, token_ids: Sequence[int], end: FinishReason | GenerationError | None) -> None:
        """Take new tokens, and the end. What comes after the end is ignored."""
        if self._on_cancel is None:
            return
        self._token_ids += token_ids
        self.num_tokens += len(token_ids)
        if isinstance(end, GenerationError):
            self._error = end
        else:
            self.finish_reason = end
        if end is not None:
            self._on_cancel = None
        self._has_news.set()


@dataclass(eq=False)
class _Request:
    """row and pixels: as submitted. loop: whose tasks read the stream. num_steps and last_time: of its tokens, for the
    device thread."""

    row: "DecodeRow"
    pixels: "Mapping[ImageGrid, Pixels]"
    loop: asyncio.AbstractEventLoop
    stream: TokenStream = field(init=False)
    cancelled_as: Outcome | None = None
    num_steps: int = 0
    last_time: float = field(default_factory=time.perf_counter)


class _News(NamedTuple):
    request: _Request
    token_ids: Sequence[int]
    end: FinishReason | GenerationError | None


class Scheduler:
    """Answers requests of asyncio's tasks on one thread, which owns the device. The thread starts at once.

    batch, features: used by that thread alone. warm_up: called there first; it returns remarks. max_step_seconds: the
    device counts as lost if a step takes longer; None: it is waited for. on_lost: is told why, once.
    """

    def __init__(
        self,
        batch: "ContinuousBatch",
        features: "FeatureLru",
        eos_token_ids: Collection[int],
        *,
        warm_up: Callable[[], Sequence[str]] = tuple,
        max_waiting: int = MAX_WAITING,
        max_step_seconds: float | None = None,
        on_lost: Callable[[GenerationError], None] = traceback.print_exception,
    ) -> None:
        self._batch, self._features, self._warm_up = batch, features, warm_up
        self._eos_token_ids, self._max_waiting = frozenset(eos_token_ids), max_waiting
        self._max_step_seconds, self._on_lost = max_step_seconds, on_lost
        self._stats = SchedulerStats()
        self._remarks: Sequence[str] = ()
        self._error: BaseException | None = None
        self._step_started: float | None = None  # None: nothing to do
        self._is_short = False  # of memory: nobody joins before a row has left
        self._next_join = 0.0
        self._num_expected = 0  # requests that are being read
        self._watched: set[asyncio.AbstractEventLoop] = set()
        self._condition = threading.Condition()  # guards the state and who waits and runs
        self._state: State = "loading"
        self._waiting: deque[_Request] = deque()
        self._running: dict[DecodeRow, _Request] = {}
        self._has_cancelled = False
        self._thread = threading.Thread(target=self._run, name="lorgnette device", daemon=True)
        self._thread.start()

    @classmethod
    def from_models(cls, models: "ModelSet") -> Self:
        """A scheduler of these models, which answer once before it is ready."""
        from lorgnette.inference.continuous_batch import ContinuousBatch
        from lorgnette.server.warm_up import warm_up

        batch, features = ContinuousBatch(models.generator, models.adapter_ranks), models.features
        limit = MAX_STEP_SECONDS if models.device.type == "cuda" else None
        return cls(
            batch, features, models.eos_token_ids, warm_up=lambda: warm_up(models, batch, features),
            max_step_seconds=limit,
        )  # fmt: skip

    @property
    def state(self) -> State:
        """loading: the model has not answered yet. lost: the device does not answer any more; only a restart helps."""
        started, limit = self._step_started, self._max_step_seconds
        if self._state == "ready" and started is not None and limit is not None:
            return "lost" if time.monotonic() - started > limit else "ready"
        return self._state

    @property
    def max_tokens(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return self._batch.max_tokens

    def wait_until_ready(self) -> Sequence[str]:
        """Wait until the model has answered. Returns remarks about it. Raises what the warm-up raises, and
        LorgnetteError if memory is short."""
        with self._condition:
            # Without a limit, Ctrl-C would be heard after the wait if it comes just before it.
            while not self._condition.wait_for(lambda: self._state != "loading", _WATCH_SECONDS):
                pass
        if self._error is not None:
            if is_out_of_memory(self._error):
                message, hint = "out of memory at the first answer", "free some memory, or use --device cpu"
                raise LorgnetteError(message, where="memory", hint=hint) from self._error
            raise self._error
        return self._remarks

    @contextmanager
    def expect_request(self) -> Iterator[None]:
        """Read a request inside, and submit it. Those that wait to join may wait for it."""
        with self._condition:
            self._num_expected += 1
        try:
            yield
        finally:
            with self._condition:
                self._num_expected -= 1
                self._condition.notify_all()

    def submit(self, row: "DecodeRow", pixels: "Mapping[ImageGrid, Pixels]") -> TokenStream:
        """Queue a request. pixels: of its images. Call it in a task of asyncio.

        Raises QueueFullError, and GenerationError if nothing can be answered. The row has at most `max_tokens`.
        """
        assert row.num_tokens <= self.max_tokens
        request = _Request(row, pixels, asyncio.get_running_loop())
        request.stream = TokenStream(lambda outcome: self._cancel(request, outcome))
        with self._condition:
            if self.state != "ready":
                raise self._explain_state()
            if len(self._waiting) >= self._max_waiting:
                self.count_refusal()
                raise QueueFullError(f"{self._max_waiting} requests wait already")
            self._waiting.append(request)
            self._condition.notify_all()
        if self._max_step_seconds is not None and request.loop not in self._watched:
            self._watched.add(request.loop)
            self._watch(request.loop)
        return request.stream

    def count_refusal(self) -> None:
        """Count a request that was refused because too many wait."""
        with self._condition:
            self._stats.outcomes["refused"] += 1

    def read_stats(self) -> SchedulerStats:
        """The numbers since the start. They go on counting."""
        self._stats.waiting, self._stats.running = len(self._waiting), len(self._running)
        self._stats.feature_bytes = self._features.num_bytes
        return self._stats

    def close(self) -> None:
        """End all streams with an error, and the thread after its step. A lost device's thread is left alone."""
        self._fail_all("closed")
        if self._state != "lost":
            self._thread.join(_CLOSE_SECONDS)

    def _explain_state(self) -> GenerationError:
        if self.state == "loading":
            return GenerationError("the model is being loaded; try again soon", "loading")
        if self.state == "closed":
            return GenerationError("the server stops", "closed")
        cause = self._error
        reason = "it does not answer" if cause is None else (str(cause).strip() or repr(cause)).splitlines()[0]
        error = GenerationError(f"the device is lost: {reason}; restart the server", "device_lost")
        error.__cause__ = cause
        return error

    def _fail_all(self, state: State) -> None:
        """Enter a final state, and end all streams with its error. The first final state stays."""
        with self._condition:
            is_lost = (self._state, state) == ("ready", "lost")
            if self._state in ("loading", "ready"):
                self._state = state
            requests = [*self._waiting, *self._running.values()]
            self._waiting.clear()
            self._running.clear()
            self._stats.outcomes["error"] += len(requests)
            self._condition.notify_all()
        error = self._explain_state()
        self._post([_News(request, (), error) for request in requests])
        if is_lost:
            self._on_lost(error)

    def _post(self, news: Sequence[_News]) -> None:
        """Hand news to the streams, with one call of each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_News]] = defaultdict(list)
        for each in news:
            by_loop[each.request.loop].append(each)
        for loop, own in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, own)
            except RuntimeError:  # the loop is closed: nobody reads these streams
                for each in own:
                    self._cancel(each.request, "cancelled")

    # On the event loop's thread:

    def _cancel(self, request: _Request, outcome: Outcome) -> None:
        with self._condition:
            if request in self._waiting:
                self._waiting.remove(request)
                self._stats.outcomes[outcome] += 1
            else:
                request.cancelled_as, self._has_cancelled = outcome, True

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the streams if the device is lost, since its thread cannot. Look again while there are streams."""
        if self.state == "lost":
            self._fail_all("lost")
        if self._waiting or self._running:
            loop.call_later(_WATCH_SECONDS, self._watch, loop)
        else:
            self._watched.discard(loop)

    # On the device thread:

    def _run(self) -> None:
        try:
            self._remarks = self._warm_up()
            with self._condition:
                if self._state == "loading":
                    self._state = "ready"
                self._condition.notify_all()
            while self._wait_for_work():
                self._process_cancellations()
                start, has_joined = time.perf_counter(), self._admit()
                self._step()  # on a GPU the step waits for the prefill
                if has_joined:
                    now = time.perf_counter()
                    self._next_join = now + (now - start) * (1 / _JOIN_SHARE - 1)
        except BaseException as error:
            self._error = error
        self._fail_all("lost")

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do. False: the thread ends."""
        with self._condition:
            while self._state == "ready" and not self._running:
                pause = self._compute_pause() if self._waiting else None
                if pause == 0:
                    break
                self._step_started = None
                self._condition.wait(pause)
            self._step_started = time.monotonic()
            return self._state == "ready"

    def _compute_pause(self) -> float:
        """Seconds for which those that wait still wait for requests that are being read, so that all join together."""
        with self._condition:
            if not (self._num_expected and self._waiting):
                return 0.0
            return max(0.0, self._waiting[0].last_time + _MAX_PAUSE_SECONDS - time.perf_counter())

    def _process_cancellations(self) -> None:
        if self._has_cancelled:
            self._has_cancelled = False
            for request in list(self._running.values()):
                if request.cancelled_as is not None:
                    self._leave(request, request.cancelled_as)

    def _leave(self, request: _Request, outcome: Outcome) -> None:
        self._batch.leave(request.row)
        self._is_short = False
        self._end(request, outcome)

    def _end(self, request: _Request, outcome: Outcome) -> bool:
        """False if it does not run any more."""
        with self._condition:
            has_run = self._running.pop(request.row, None) is not None
            self._stats.outcomes[outcome] += has_run
        return has_run

    def _admit(self) -> bool:
        """Let requests join, in the order in which they came. Returns whether any were asked to."""
        if self._is_short or not self._waiting:
            return False
        if 2 * len(self._waiting) < len(self._running) and time.perf_counter() < self._next_join:
            return False
        if self._compute_pause() > 0:
            return False
        with self._condition:
            waiting = {request.row: request for request in self._waiting}
        rows = self._batch.select(list(waiting))
        with self._condition:
            requests = deque(waiting[row] for row in rows if waiting[row] in self._waiting)
            for request in requests:
                self._waiting.remove(request)
                self._running[request.row] = request
        self._join(requests)
        return bool(rows)

    def _join(self, requests: deque[_Request]) -> None:
        """All at once; out of memory, one by one, with what could be freed. One that does not fit waits until a row
        leaves. It fails if there is none."""
        is_short = False
        while requests:
            group = [requests[0]] if is_short else list(requests)
            if self._try_join(group):
                for _ in group:
                    requests.popleft()
                continue
            self._drop_idle_memory()
            if not is_short:
                is_short = True
            elif len(self._running) > len(requests):
                self._is_short = True
                self._put_back(requests)
                return
            else:
                self._fail(requests.popleft(), "out of memory: the images or the text are too large", "out_of_memory")

    def _try_join(self, requests: Sequence[_Request]) -> bool:
        """False: memory is short, and the batch is as it was."""
        try:
            self._features.encode({grid: values for each in requests for grid, values in each.pixels.items()})
            self._batch.join([request.row for request in requests])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        for request in requests:
            self._stats.prompt_tokens += len(request.row.prompt.input_ids)
        return True

    def _put_back(self, requests: Sequence[_Request]) -> None:
        """Let requests wait again, unless nobody waits for them."""
        with self._condition:
            for request in reversed(requests):
                if request.cancelled_as is not None:
                    self._end(request, request.cancelled_as)
                elif self._running.pop(request.row, None) is not None:
                    self._waiting.appendleft(request)

    def _fail(self, request: _Request, message: str, code: str) -> None:
        if self._end(request, "error"):
            self._post([_News(request, (), GenerationError(message, code))])

    def _drop_newest(self) -> None:
        """Take the newest request off the device: memory is short in a decode step, also where idle memory is free.

        Without a token it waits until another one leaves, if there is one; else it fails.
        """
        requests = list(self._running.values())
        if not requests:  # another thread has ended them all
            return
        newest = requests[-1]
        self._batch.leave(newest.row)
        self._is_short = not newest.num_steps and len(requests) > 1
        if self._is_short:
            self._put_back([newest])
        else:
            self._fail(newest, "out of memory while the answer was generated; ask again", "out_of_memory")

    def _drop_idle_memory(self) -> None:
        self._features.clear()
        self._batch.drop_idle_memory()

    def _step(self) -> None:
        """One token of every row. Out of memory, once more with what could be freed, and then without the newest row,
        again and again: its room may hold what the others need."""
        tokens = self._try_step()
        while tokens is None and self._running:
            self._drop_idle_memory()
            tokens = self._try_step()
            if tokens is None:
                self._drop_newest()
        if tokens is None:
            self._drop_idle_memory()
            return
        now = time.perf_counter()
        news: list[_News] = []
        for row, token_id in tokens:
            request = self._running.get(row)
            if request is None:
                continue
            request.num_steps += 1
            if request.num_steps == 1:
                request.pixels = {}  # it will not begin anew
            (self._stats.first_token if request.num_steps == 1 else self._stats.token).add(now - request.last_time)
            request.last_time = now
            end: FinishReason | None = "length" if request.num_steps == row.sampling.max_new_tokens else None
            if token_id in self._eos_token_ids:
                end = "stop"
            new = () if end == "stop" else (token_id,)
            self._stats.answer_tokens += len(new)
            news.append(_News(request, new, end))
            if end is not None:
                self._leave(request, end)
        self._post(news)

    def _try_step(self) -> list[tuple["DecodeRow", int]] | None:
        """None: memory is short. No traceback holds tensors then."""
        try:
            return self._batch.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None


def _deliver(news: Sequence[_News]) -> None:
    for request, token_ids, end in news:
        request.stream.receive(token_ids, end)
