"""The keys of a chat completion: what they mean, what is ignored, and what is refused by name."""

import json
from typing import Any

import pytest

from lorgnette.inference.sampling import SamplingParams
from lorgnette.server.api_errors import ApiError
from lorgnette.server.chat_request import ChatRequest

ASK = [{"role": "user", "content": "COCO Yes:"}]


def parse(**keys: Any) -> ChatRequest:
    return ChatRequest.parse(json.dumps({"model": "base", "messages": ASK, **keys}).encode())


def catch_refusal(**keys: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**keys)
    assert caught.value.status == 400
    return caught.value


def test_an_answer_is_greedy_unless_a_temperature_is_given() -> None:
    for keys in ({}, {"temperature": 0}, {"temperature": None, "top_p": None}, {"temperature": 1e-9}):
        assert parse(seed=3, **keys).build_sampling(128) == SamplingParams(128, 1, None, 1.0, 3)
    sampled = parse(temperature=0.7, top_p=0.9, seed=3, max_tokens=5).build_sampling(128)
    assert sampled == SamplingParams(5, 1, 0.7, 0.9, 3)
    assert parse(max_completion_tokens=7, max_tokens=5).build_sampling(128).max_new_tokens == 7


def test_seeds() -> None:
    """Any of 64 bits. Without one, two answers differ."""
    assert parse(seed=-1).build_sampling(1).seed == 2**64 - 1
    assert parse(seed=0).build_sampling(1).seed == 0
    assert parse().build_sampling(1).seed != parse().build_sampling(1).seed
    assert catch_refusal(seed=2**64).param == "seed"


def test_what_is_not_supported_is_refused_by_its_name() -> None:
    refused: dict[str, list[Any]] = {
        "n": [2], "logprobs": [True], "top_logprobs": [3], "tools": [[{"type": "function"}]], "functions": [[{}]],
        "tool_choice": ["required"], "response_format": [{"type": "json_object"}, {"type": "json_schema"}],
        "audio": [{"voice": "a"}], "modalities": [["audio"]], "logit_bias": [{"3": 1}], "frequency_penalty": [0.5],
        "presence_penalty": [-1], "repetition_penalty": [1.1], "top_k": [20], "min_p": [0.1],
        "ignore_eos": [True], "lora_path": ["captions"],
        "structured_outputs": [{"json": {}}], "length_penalty": [2], "use_beam_search": [True],
        "chat_template_kwargs": [{"enable_thinking": True}], "chat_template": ["a"], "add_generation_prompt": [False],
        "grammar": ["root ::= [0-9]"], "regex": ["a+"], "max_new_tokens": [5], "do_sample": [True], "num_beams": [4],
        "repeat_penalty": [1.3], "enable_thinking": [True],
    }  # fmt: skip
    for name, values in refused.items():
        for value in values:
            error = catch_refusal(**{name: value})
            assert (error.param, error.code) == (name, "unsupported_parameter")
            assert error.message.startswith(f"{name} is not supported")


def test_what_asks_for_nothing_is_taken() -> None:
    parse(
        n=1, logprobs=False, top_logprobs=0, tools=[], tool_choice="auto", response_format={"type": "text"},
        logit_bias={}, frequency_penalty=0, presence_penalty=0.0, audio=None, user="a", metadata={"a": "b"}, store=True,
        service_tier="auto", parallel_tool_calls=True, min_pixels=4, chat_template_kwargs={}, stop=None, stream=None,
        length_penalty=1.0, add_generation_prompt=True, do_sample=False, num_beams=1, regex=None,
    )  # fmt: skip


PART = {"type": "text", "text": "a"}


def test_stop_texts() -> None:
    assert parse().stop_texts == []
    assert parse(stop="\n").stop_texts == ["\n"]
    assert parse(stop=["a", "b"]).stop_texts == ["a", "b"]
    for stop in (["a"] * 5, "", ["a", ""], [1]):
        assert str(catch_refusal(stop=stop).param).startswith("stop")
    assert "at most 4 items" in catch_refusal(stop=["a"] * 5).message
    assert "at most 256 items" in catch_refusal(messages=[{"role": "user", "content": [PART] * 257}]).message


def test_a_wrong_value_is_named() -> None:
    for keys, where in (
        ({"temperature": 2.5}, "temperature"), ({"temperature": "warm"}, "temperature"), ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_completion_tokens": 10**400}, "max_completion_tokens"),
        ({"messages": []}, "messages"), ({"messages": "hello"}, "messages"), ({"model": 3}, "model"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"), ({"messages": ["hello"]}, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"uri": ""}}]}]},
         "messages.0.content.0.image_url.url"),
        ({"messages": ASK * 300}, "messages"), ({"stream": "perhaps"}, "stream"),
    ):  # fmt: skip
        error = catch_refusal(**keys)
        assert error.param == where
        assert error.message.startswith(f"{where}: ")
        assert "instance" not in error.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model": "a"', b"\xff{}", b'{"model":"\\ud800"}', b"[" * 9999]
)
def test_a_body_that_is_no_request(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        ChatRequest.parse(body)
    assert (caught.value.status, caught.value.type, caught.value.code) == (400, "invalid_request_error", None)
    assert len(caught.value.message) < 300


def test_a_request_of_endless_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 MiB of small values would hold the event loop for seconds. The longest text passes, whatever it is."""
    for character in ",[{":
        assert parse(messages=[{"role": "user", "content": character * 2**18}]).messages
    monkeypatch.setattr("lorgnette.server.chat_request.from_json", lambda *_, **__: pytest.fail("parsed"))
    for values in ([1] * 300_100, [[[[[[]]]]]] * 50_100, [{"a": {"a": 1}}] * 100_100):
        assert "more than 300,000 values" in catch_refusal(x=values).message
