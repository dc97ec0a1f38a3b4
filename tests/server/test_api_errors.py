"""Errors have OpenAI's form, as an answer and as the event that ends a stream."""

import json

from lorgnette.server.api_errors import ApiError, format_event


def test_an_error_is_openais_object() -> None:
    error = ApiError(400, "no image", param="messages.0", code="invalid_image", headers={"retry-after": "1"})
    expected = {"message": "no image", "type": "invalid_request_error", "param": "messages.0", "code": "invalid_image"}
    response = error.to_response()
    assert (response.status_code, response.headers["retry-after"]) == (400, "1")
    assert json.loads(bytes(response.body)) == {"error": expected}
    assert error.to_event().startswith("data: ")
    assert json.loads(error.to_event().removeprefix("data: ")) == {"error": expected}


def test_an_event_is_one_line_and_an_empty_one() -> None:
    text = 'two\nlines, "é" and 🎈\r\n' + "".join(map(chr, range(0x3000)))
    event = format_event({"text": text})
    first, empty = event.splitlines()  # as clients split it that read lines of text
    assert json.loads(first.removeprefix("data: ")) == {"text": text}
    assert (empty, event[-3:]) == ("", "}\n\n")
    assert "🎈" in event
