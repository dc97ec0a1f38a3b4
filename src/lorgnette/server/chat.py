"""`POST /v1/chat/completions`: a request becomes a prompt and a row of the batch, and its tokens become the answer.

An answer is one JSON object, or a stream of server-sent events. A client that goes away frees its row.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lorgnette.inference.continuous_batch import DecodeRow
from lorgnette.report.manifest import read_version
from lorgnette.server.api_errors import ApiError, format_event, format_json
from lorgnette.server.chat_request import ChatRequest
from lorgnette.server.models import ModelSet, ServedModel
from lorgnette.server.prompts import PromptEncoder, TooManyPromptsError
from lorgnette.server.scheduler import GenerationError, QueueFullError, Scheduler, TokenStream
from lorgnette.server.text_stream import TextStream

T = TypeVar("T")
PAUSE_SECONDS = 10.0
"""After so long without text a stream says that it is alive: proxies close silent connections."""
RETRY_HEADERS = {"retry-after": "1"}
"""In seconds: clients ask again by themselves."""
_GONE = 499
"""The status that nginx gives a request whose client has gone; nobody reads it."""
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_FAILED_HERE = "out_of_memory"
"""The code of a failure of one request alone; with all others the server cannot answer at all."""


class Answer:
    """An answer that is being generated."""

    def __init__(self, request: ChatRequest, model: ServedModel, tokens: TokenStream, num_prompt_tokens: int) -> None:
        self.request, self.tokens, self._num_prompt_tokens = request, tokens, num_prompt_tokens
        self.text = TextStream(model.processor, request.stop_texts)
        self._head = {  # of every chunk
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": f"lorgnette-{read_version('lorgnette')}-{model.fingerprint}",
        }

    async def iter_pieces(self) -> AsyncIterator[str]:
        """The text piece by piece; an empty one now and then if there is none for PAUSE_SECONDS. Raises ApiError where
        it fails."""
        loop, is_silent = asyncio.get_running_loop(), True
        timer: asyncio.TimerHandle

        def wake() -> None:  # a timeout for each token is a good part of the work
            nonlocal timer
            self.tokens.wake()
            timer = loop.call_later(PAUSE_SECONDS, wake)

        timer = loop.call_later(PAUSE_SECONDS, wake)
        try:
            async for token_ids in self.tokens:
                piece = self.text.add(token_ids)
                if piece or (is_silent and not token_ids):
                    yield piece
                is_silent = not token_ids or (is_silent and not piece)
                if self.text.has_stopped:
                    self.tokens.cancel("stop")
                    break
        except GenerationError as error:
            raise build_generation_error(error) from error
        finally:
            timer.cancel()
        if rest := self.text.end():
            yield rest

    @property
    def finish_reason(self) -> str | None:
        return "stop" if self.text.has_stopped else self.tokens.finish_reason

    @property
    def usage(self) -> dict[str, int]:
        prompt, answer = self._num_prompt_tokens, self.text.num_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def build_body(self, kind: str, choices: Sequence[Mapping[str, Any]], **keys: Any) -> dict[str, Any]:
        """An object of the API with these choices."""
        return {**self._head, "object": kind, "choices": choices, **keys}


class ChatEndpoint:
    """Answers chat completions."""

    def __init__(self, models: ModelSet, scheduler: Scheduler, encoder: PromptEncoder) -> None:
        self._models, self._scheduler, self._encoder = models, scheduler, encoder

    async def __call__(self, http: Request) -> Response:
        """Raises ApiError for what is refused, and for what fails before the answer begins."""
        try:
            body = [part async for part in http.stream()]  # `http.body()` would keep it until the answer's end
            request = ChatRequest.parse(b"".join(body))
            del body
            answer = await self._start(http, request, find_model(self._models, request.model))
            return await (respond_in_stream if request.stream else respond)(http, answer)
        except ClientDisconnect:
            return Response(status_code=_GONE)

    async def _start(self, http: Request, request: ChatRequest, model: ServedModel) -> Answer:
        try:
            with self._scheduler.expect_request():
                prompt, pixels = await run_for_client(http, self._encoder.encode(model, request.messages))
                room = self._scheduler.max_tokens - len(prompt.input_ids)
                # The model's own limit asks for nothing that there is no room for.
                sampling = request.build_sampling(max(1, min(model.max_new_tokens, room)))
                if sampling.max_new_tokens > room:
                    raise _build_room_error(len(prompt.input_ids), sampling.max_new_tokens, self._scheduler.max_tokens)
                tokens = self._scheduler.submit(DecodeRow(prompt, model.adapter, sampling), pixels)
        except (QueueFullError, TooManyPromptsError) as error:
            if isinstance(error, TooManyPromptsError):
                self._scheduler.count_refusal()  # as the scheduler counts its own
            raise ApiError(
                429, str(error), type="rate_limit_error", code="queue_full", headers=RETRY_HEADERS
            ) from error
        except GenerationError as error:
            raise build_generation_error(error) from error
        return Answer(request, model, tokens, len(prompt.input_ids))


async def respond(http: Request, answer: Answer) -> Response:
    """The whole answer as one object. Raises ApiError where it fails, and ClientDisconnect."""

    async def collect() -> str:
        return "".join([piece async for piece in answer.iter_pieces()])

    try:
        text = await run_for_client(http, collect())
    finally:
        answer.tokens.cancel()
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return JSONResponse(answer.build_body("chat.completion", [choice], usage=answer.usage))


async def respond_in_stream(http: Request, answer: Answer) -> Response:
    """The answer as events. It begins with the first text: a failure before it still has a status.

    Raises ApiError for such a failure, and ClientDisconnect.
    """
    pieces = answer.iter_pieces()
    try:
        first = await run_for_client(http, _read_next(pieces))
    except BaseException:
        answer.tokens.cancel()
        raise
    return _AnswerResponse(answer, iter_events(answer, first, pieces))


async def iter_events(answer: Answer, first: str | None, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events of a stream. first: its first piece of text; None: there is none.

    A failure is an event with an error, and ends the stream without [DONE].
    """
    options = answer.request.stream_options
    has_usage = bool(options and options.include_usage)

    def build_chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if has_usage else {}
        return format_event(answer.build_body("chat.completion.chunk", [choice], **usage))

    # All chunks with text are the same around it.
    before, after = build_chunk({"content": _TEXT}).split(format_json(_TEXT))

    def build_event(piece: str) -> str:
        return f"{before}{format_json(piece)}{after}" if piece else _PING

    yield build_chunk({"role": "assistant", "content": ""})
    try:
        if first is not None:
            yield build_event(first)
            async for piece in rest:
                yield build_event(piece)
    except ApiError as error:
        yield error.to_event()
        return
    yield build_chunk({}, answer.finish_reason)
    if has_usage:
        yield format_event(answer.build_body("chat.completion.chunk", [], usage=answer.usage))
    yield "data: [DONE]\n\n"


_TEXT = "\0"
"""Stands for a text: no name of a model is this."""
_PING = ": the answer is on its way\n\n"
"""A comment: clients skip it."""


class _AnswerResponse(StreamingResponse):
    """A stream that frees the row of its answer, however it ends."""

    def __init__(self, answer: Answer, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.tokens.cancel()


async def _read_next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


async def run_for_client(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work. Cancels it and raises ClientDisconnect when the client goes away."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_until_gone(http))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        del task, gone  # an error's traceback holds this frame: with its task it would keep the request's images


async def _wait_until_gone(http: Request) -> None:
    """Behind the body, the server's next message is the end of the connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def find_model(models: ModelSet, name: str) -> ServedModel:
    """Raises ApiError 404 with the names that there are."""
    model = models.find(name)
    if model is None:
        names = ", ".join(model.name for model in models.models)
        message = f"The model `{name[:100]}` does not exist; there are: {names}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return model


def _build_room_error(num_prompt_tokens: int, max_new_tokens: int, room: int) -> ApiError:
    message = f"the prompt has {num_prompt_tokens} tokens and the answer up to {max_new_tokens}: more than {room}"
    return ApiError(400, message, param="messages", code="context_length_exceeded")


def build_generation_error(error: GenerationError) -> ApiError:
    """A failure of the device in OpenAI's form. Its clients ask again by themselves."""
    status = 500 if error.code == _FAILED_HERE else 503
    return ApiError(status, error.message, type="server_error", code=error.code)
