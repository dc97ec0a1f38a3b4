"""What clients get from the whole app on loopback: the openai package, LangChain, curl and bare HTTP."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import shutil
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import openai
import PIL.Image
import pytest
from served_app import FAKE_ANSWERS, FakeModels, FakeScheduler, Served, start_server

from lorgnette.server import chat
from lorgnette.server.prompts import PromptEncoder, TooManyPromptsError
from lorgnette.server.scheduler import GenerationError, TokenStream

BASE, TUNED = FAKE_ANSWERS[None], FAKE_ANSWERS[0]
REPLACEMENT = "\ufffd"


def encode_image(color: str, format_: str = "PNG") -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 48), color).save(file, format_)
    return f"data:image/{format_.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def ask(color: str = "red", text: str = "COCO Yes:") -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": encode_image(color), "detail": "low"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


ASK = ask()


def wait_until(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post(served: Served, **keys: Any) -> httpx.Response:
    body = {"model": "captions", "messages": ASK, **keys}
    return httpx.post(f"{served.api}/chat/completions", json=body, timeout=30)


def read_events(text: str) -> list[Any]:
    """The JSON of each event; a comment is skipped."""
    *events, rest = text.split("\n\n")
    assert rest == ""
    contents = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    assert all("\n" not in content for content in contents)
    return [content if content == "[DONE]" else json.loads(content) for content in contents]


@pytest.fixture(scope="module")
def module_client(module_fake_server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=module_fake_server.api, api_key="any", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def client(module_client: openai.OpenAI, fake_server: Served) -> openai.OpenAI:
    """The openai package, with the key that any server on loopback takes."""
    return module_client


# Answers


def test_an_answer(client: openai.OpenAI, fake_server: Served) -> None:
    answer = client.chat.completions.create(model="captions", messages=ASK)
    [choice] = answer.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", TUNED)
    assert (choice.finish_reason, choice.logprobs, choice.message.refusal) == ("stop", None, None)
    assert (answer.object, answer.model) == ("chat.completion", "captions")
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 100
    assert str(answer.system_fingerprint).startswith("lorgnette-")
    assert str(answer.system_fingerprint).endswith("-3f9a21c0")
    [row] = fake_server.scheduler.rows
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(row.prompt.input_ids)
    assert answer.usage.completion_tokens == len(fake_server.scheduler.encode(TUNED))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [image.shape for image in fake_server.scheduler.pixels[0].values()] == [(112, 112, 3)]


def test_base_and_adapters_by_name(client: openai.OpenAI, fake_server: Served) -> None:
    for name, adapter, text in (("base", None, BASE), ("demo", None, BASE), ("cats/v2:best", 1, "Two cats.")):
        answer = client.chat.completions.create(model=name, messages=ASK)
        assert (answer.model, answer.choices[0].message.content) == (name, text)
        assert fake_server.scheduler.rows[-1].adapter == adapter


def test_the_length_is_limited(client: openai.OpenAI, fake_server: Served) -> None:
    answer = client.chat.completions.create(model="base", messages=ASK, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "The image shows"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert fake_server.scheduler.rows[-1].sampling.max_new_tokens == 3
    client.chat.completions.create(model="base", messages=ASK)
    assert fake_server.scheduler.rows[-1].sampling.max_new_tokens == 128
    num_prompt_tokens = answer.usage.prompt_tokens
    fake_server.scheduler.max_tokens = num_prompt_tokens + 2
    shorter = client.chat.completions.create(model="base", messages=ASK)
    assert (shorter.choices[0].message.content, shorter.choices[0].finish_reason) == ("The image", "length")
    fake_server.scheduler.max_tokens = num_prompt_tokens
    with pytest.raises(openai.BadRequestError, match=f"{num_prompt_tokens} tokens and the answer up to 1"):
        client.chat.completions.create(model="base", messages=ASK)


def test_unknown_keys_do_no_harm(client: openai.OpenAI) -> None:
    extra = {"min_pixels": 4, "chat_template_kwargs": {}}
    answer = client.chat.completions.create(model="captions", messages=ASK, extra_body=extra, user="me", n=1)
    assert answer.choices[0].message.content == TUNED


def test_an_image_as_a_bare_string(fake_server: Served) -> None:
    content = [{"type": "image_url", "image_url": encode_image("red")}, {"type": "text", "text": "COCO Yes:"}]
    assert post(fake_server).status_code == 200
    assert post(fake_server, messages=[{"role": "user", "content": content}]).status_code == 200
    first, second = (row.prompt.input_ids.tolist() for row in fake_server.scheduler.rows)
    assert first == second


# Streams


def test_a_stream(client: openai.OpenAI) -> None:
    keys: Any = {"model": "captions", "messages": ASK, "stream": True}
    with client.chat.completions.create(**keys, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TUNED
    assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }
    *others, before, last = chunks
    assert [chunk.choices[0].finish_reason for chunk in others] == [None] * len(others)
    assert (before.choices[0].finish_reason, before.choices[0].delta.content) == ("stop", None)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage == client.chat.completions.create(model="captions", messages=ASK).usage
    with client.chat.completions.create(**keys) as stream:
        assert all(chunk.usage is None and chunk.choices for chunk in stream)


def test_the_bytes_of_a_stream(fake_server: Served) -> None:
    answer = post(fake_server, stream=True, stream_options={"include_usage": True}, max_tokens=2)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    *chunks, done = read_events(answer.text)
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert all("usage" not in chunk for chunk in read_events(post(fake_server, stream=True).text)[:-1])


def test_characters_are_not_torn(fake_server: Served) -> None:
    text = "🎈 два шара, 气球 新 👩‍👩‍👧 é, a\u2028line, a\x85line"
    fake_server.scheduler.answers[0] = text
    pieces = [
        e["choices"][0]["delta"].get("content", "") for e in read_events(post(fake_server, stream=True).text)[:-1]
    ]
    assert "".join(pieces) == post(fake_server).json()["choices"][0]["message"]["content"] == text
    assert len(pieces) > 10
    assert REPLACEMENT not in "".join(pieces)


def test_stop_texts(client: openai.OpenAI, fake_server: Served) -> None:
    """They end the answer, are not in it, and free the row."""
    fake_server.scheduler.step_seconds = 0.02
    whole = client.chat.completions.create(model="captions", messages=ASK, stop=["left of", "cat"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("A small red car to the ", "stop")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(fake_server.scheduler.encode("A small red car to the left of"))
    with client.chat.completions.create(model="captions", messages=ASK, stop=" red", stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "A small"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert fake_server.scheduler.outcomes == ["stop", "stop"]  # and not "cancelled" by their clients


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="captions", messages=ASK) as events:
        kinds = {event.type for event in events}
    assert events.get_final_completion().choices[0].message.content == TUNED
    assert {"chunk", "content.delta", "content.done"} <= kinds


def test_a_stream_that_waits_says_that_it_is_alive(
    client: openai.OpenAI, fake_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By comments, which clients skip. Tokens without text are no answer either."""
    monkeypatch.setattr(chat, "PAUSE_SECONDS", 0.03)
    fake_server.scheduler.step_seconds = 0.1
    text = post(fake_server, stream=True, max_tokens=2).text
    assert text.count(chat._PING) >= 2
    assert text.startswith('data: {"id":')
    with client.chat.completions.create(model="captions", messages=ASK, max_tokens=2, stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "A small"
    assert len(post(fake_server, max_tokens=2).json()["choices"]) == 1
    woken = list[int]()
    monkeypatch.setattr(TokenStream, "wake", lambda stream: woken.append(stream.num_tokens))
    time.sleep(0.1)
    assert woken == []  # no timer outlives its answer


# Failures


def test_a_failure_before_the_first_text_has_a_status(client: openai.OpenAI, fake_server: Served) -> None:
    fake_server.scheduler.fails_after = 0
    for code, status in (("device_lost", 503), ("out_of_memory", 500), ("closed", 503)):
        fake_server.scheduler.error = GenerationError("because", code)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="captions", messages=ASK, stream=stream)
            assert (caught.value.status_code, caught.value.code, caught.value.type) == (status, code, "server_error")
    fake_server.scheduler.state, fake_server.scheduler.error = "loading", GenerationError("loading", "loading")
    answer = post(fake_server)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")


def test_a_failure_within_a_stream_is_an_event(client: openai.OpenAI, fake_server: Served) -> None:
    """The last one, without [DONE]: the package raises it."""
    fake_server.scheduler.fails_after = 3
    *chunks, error = read_events(post(fake_server, stream=True).text)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "A small red"
    message = "the device is lost: test"
    assert error == {"error": {"message": message, "type": "server_error", "param": None, "code": "device_lost"}}
    with client.chat.completions.create(model="captions", messages=ASK, stream=True) as stream:
        with pytest.raises(openai.APIError, match=message) as caught:
            list(stream)
        assert type(caught.value) is openai.APIError
    assert post(fake_server).status_code == 503


def test_a_full_queue_is_asked_again(
    fake_server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat.RETRY_HEADERS == {"retry-after": "1"}
    monkeypatch.setitem(chat.RETRY_HEADERS, "retry-after", "0.05")
    patient = client.with_options(max_retries=2)
    fake_server.scheduler.num_refusals = 2
    assert patient.chat.completions.create(model="captions", messages=ASK).choices[0].message.content == TUNED
    assert len(fake_server.scheduler.rows) == 3
    fake_server.scheduler.num_refusals = 3
    with pytest.raises(openai.RateLimitError) as caught:
        patient.chat.completions.create(model="captions", messages=ASK)
    assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")


def test_too_many_prompts_are_refused_and_counted(fake_server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their images leave the memory without a run of the garbage collector, which an idle server hardly has."""
    seen: list[weakref.ref[Any]] = []

    async def refuse(_: object, model: object, messages: list[Any]) -> None:
        seen.append(weakref.ref(messages[0]))
        raise TooManyPromptsError("too many requests and images wait already")

    monkeypatch.setattr(PromptEncoder, "encode", refuse)
    gc.disable()
    try:
        answer = post(fake_server)
        wait_until(lambda: seen[0]() is None)
    finally:
        gc.enable()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"] == "1"
    assert fake_server.scheduler.outcomes == ["refused"]


def test_refusals_are_the_exceptions_of_the_package(client: openai.OpenAI, fake_server: Served) -> None:
    def show(url: str) -> list[Any]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]

    bomb = io.BytesIO()
    PIL.Image.new("1", (8000, 8000)).save(bomb, "PNG", optimize=True)
    fake_server.scheduler.max_tokens = 60
    table: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None, str]] = [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "captions, cats/v2:best, base"),
        ({"messages": show("http://169.254.169.254/x.png")}, openai.BadRequestError, "invalid_image_url", "http:"),
        ({"messages": show("file:///etc/passwd")}, openai.BadRequestError, "invalid_image_url", "file:"),
        ({"messages": show("data:image/png;base64,@@@")}, openai.BadRequestError, "invalid_base64", ""),
        ({"messages": show("data:image/png;base64,aGVsbG8=")}, openai.BadRequestError, "invalid_image", ""),
        ({"messages": show("data:image/png;base64," + base64.b64encode(bomb.getvalue()).decode())},
         openai.BadRequestError, "image_too_large", "8000×8000"),
        ({"n": 2}, openai.BadRequestError, "unsupported_parameter", "n is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "unsupported_parameter",
         "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "unsupported_parameter", "only text"),
        ({"max_tokens": 40}, openai.BadRequestError, "context_length_exceeded", "more than 60"),
    ]  # fmt: skip
    for keys, kind, code, words in table:
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{"model": "base", "messages": ASK, "max_tokens": 3, **keys})
        assert (caught.value.code, caught.value.type) == (code, "invalid_request_error")
        assert words in caught.value.message
        assert caught.value.param is not None
    assert fake_server.scheduler.rows == []
    assert client.chat.completions.create(model="base", messages=ASK, max_tokens=3).choices


def test_broken_json(fake_server: Served) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{fake_server.api}/chat/completions", content=b"{", headers=headers)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_key_is_needed_where_one_is_set(fake_server: Served) -> None:
    scheduler = FakeScheduler(fake_server.scheduler.encode)
    with (
        start_server(FakeModels(fake_server.models.models), scheduler, api_key="secret") as served,
        openai.OpenAI(base_url=served.api, api_key="wrong", max_retries=0) as client,
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        assert len(list(client.with_options(api_key="secret").models.list())) == 3


# Clients that go away


def open_raw(served: Served, body: dict[str, Any], cut: int | None = None) -> socket.socket:
    """A connection on which a request was sent. cut: the number of bytes of its body that are missing."""
    content = json.dumps({"model": "captions", "messages": ASK, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {served.root.removeprefix('http://')}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection((served.settings.host, served.settings.port), timeout=20)
    connection.sendall(head.encode() + content[: -cut if cut else None])
    return connection


def test_a_client_that_closes_a_stream_frees_its_row(client: openai.OpenAI, fake_server: Served) -> None:
    scheduler = fake_server.scheduler
    scheduler.step_seconds = 0.2
    stream = client.chat.completions.create(model="captions", messages=ASK, stream=True)
    next(iter(stream))
    assert scheduler.cancelled == []
    stream.close()
    wait_until(lambda: scheduler.cancelled == scheduler.rows)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_goes_before_the_answer_frees_its_row(fake_server: Served, is_stream: bool) -> None:
    scheduler = fake_server.scheduler
    scheduler.step_seconds = 0.2
    with open_raw(fake_server, {"stream": is_stream}):
        wait_until(lambda: scheduler.rows)
        assert scheduler.cancelled == []
    wait_until(lambda: scheduler.cancelled == scheduler.rows)


def test_a_client_that_breaks_off_its_body_asks_nothing(fake_server: Served, capfd: pytest.CaptureFixture[str]) -> None:
    open_raw(fake_server, {}, cut=20).close()
    assert post(fake_server).status_code == 200
    assert len(fake_server.scheduler.rows) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_read_timeout_counts_between_bytes(fake_server: Served) -> None:
    fake_server.scheduler.step_seconds = 0.5
    timeout = httpx.Timeout(5, read=0.1)
    with (
        openai.OpenAI(base_url=fake_server.api, api_key="any", max_retries=0, timeout=timeout) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(model="captions", messages=ASK, stream=True)
    wait_until(lambda: fake_server.scheduler.cancelled)


# Other clients, and the model itself


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(fake_server: Served) -> None:
    body = json.dumps({"model": "captions", "stream": True, "messages": ASK, "max_tokens": 3})
    command = ["curl", "-sN", f"{fake_server.api}/chat/completions", "-H", "Content-Type: application/json", "-d", "@-"]
    out = subprocess.run(command, input=body, capture_output=True, text=True, check=True, timeout=30).stdout
    assert out.endswith("data: [DONE]\n\n")
    assert len(read_events(out)) >= 4


def test_langchain(fake_server: Served) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    image = encode_image("red").partition("base64,")[2]
    question = HumanMessage(content=[
        {"type": "text", "text": "COCO Yes:"}, {"type": "image", "base64": image, "mime_type": "image/png"},
    ])  # fmt: skip
    with httpx.Client() as http, contextlib.closing(asyncio.new_event_loop()) as loop:
        http_async = httpx.AsyncClient()
        model = ChatOpenAI(
            model="captions", base_url=fake_server.api, api_key="any", max_retries=0, http_client=http,
            http_async_client=http_async,
        )  # fmt: skip
        answer = model.invoke([question])
        assert answer.content == TUNED
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] == len(fake_server.scheduler.encode(TUNED))
        assert "".join(str(chunk.content) for chunk in model.stream([question])) == TUNED
        loop.run_until_complete(http_async.aclose())
    assert [len(pixels) for pixels in fake_server.scheduler.pixels] == [1, 1]


def test_many_at_once_get_the_answers_that_they_get_alone(real_server: Served) -> None:
    """Of the real model: base and adapters, whole and streamed, greedy and sampled."""

    async def answer(client: openai.AsyncOpenAI, number: int, is_stream: bool) -> str:
        keys: dict[str, Any] = {
            "model": ("base", "captions", "colors")[number % 3], "messages": ask(("red", "blue")[number // 3 % 2]),
            "max_tokens": 2 + number // 2, "temperature": number % 2, "seed": number,
        }  # fmt: skip
        if not is_stream:
            return (await client.chat.completions.create(**keys)).choices[0].message.content or ""
        async with await client.chat.completions.create(**keys, stream=True) as stream:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def answer_all() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=real_server.api, api_key="any", max_retries=0, timeout=120) as client:
            alone = [await answer(client, number, is_stream=False) for number in range(6)]
            together = [answer(client, number, is_stream=number < 6) for number in (0, 1, 2, 3, 4, 5, 4, 5)]
            return alone, await asyncio.gather(*together)

    alone, together = asyncio.run(answer_all())
    assert together[:6] == alone
    assert together[6:] == alone[4:]
    assert len(set(alone)) >= 5
