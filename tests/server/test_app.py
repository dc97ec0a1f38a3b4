"""The app's other routes: models, health, metrics, the page, and what is not there."""

import httpx2 as httpx
import openai
import pytest
from served_app import Served

from lorgnette.server.prompts import PromptEncoder


def test_models(fake_server: Served) -> None:
    with openai.OpenAI(base_url=fake_server.api, api_key="any", max_retries=0) as client:
        models = list(client.models.list())
        assert [model.id for model in models] == ["captions", "cats/v2:best", "base"]
        assert all((model.object, model.owned_by) == ("model", "lorgnette") for model in models)
        extra = [model.model_extra or {} for model in models]
        assert [each["parent"] for each in extra] == ["base", "base", None]
        assert extra[0]["max_model_len"] == 2048
        defaults = {"temperature": 0, "max_completion_tokens": 128, "prompt": "COCO Yes:", "image_size": [112, 112]}
        assert extra[0]["defaults"] == defaults
        assert client.models.retrieve("cats/v2:best").id == "cats/v2:best"
        assert client.models.retrieve("demo").id == "demo"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("gpt-4o")
        assert caught.value.code == "model_not_found"


def test_health_is_the_state_of_the_device(fake_server: Served) -> None:
    for state, status in (("ready", 200), ("loading", 503), ("lost", 503), ("closed", 503)):
        fake_server.scheduler.state = state
        answer = httpx.get(f"{fake_server.root}/health")
        assert (answer.status_code, answer.json()["status"]) == (status, "ok" if state == "ready" else state)


def test_metrics(fake_server: Served) -> None:
    answer = httpx.get(f"{fake_server.root}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "lorgnette_ready 1\n" in answer.text


def test_the_page_has_the_models(fake_server: Served) -> None:
    with httpx.Client(follow_redirects=True) as browser:
        page = browser.get(fake_server.page)
    assert page.headers["content-type"].startswith("text/html")
    assert "captions" in page.text


def test_what_is_not_there_is_an_error_of_the_api(fake_server: Served) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "unknown_url"), ("POST", "/v1/completions", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, None), ("POST", "/v1/models", 405, None),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),  # no redirect: behind a proxy its address is not https
    ):  # fmt: skip
        answer = httpx.request(method, fake_server.root + path, json={} if method == "POST" else None)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
        assert path in error["message"]


def test_a_defect_is_an_error_of_the_api_and_harms_nobody(fake_server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "captions", "messages": [{"role": "user", "content": "COCO Yes:"}]}
    with monkeypatch.context() as patch:
        patch.setattr(PromptEncoder, "_encode", lambda *_: 1 / 0)
        answer = httpx.post(f"{fake_server.api}/chat/completions", json=body)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["message"]) == ("server_error", "the server has a defect: ZeroDivisionError")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.post(f"{fake_server.api}/chat/completions", json=body).status_code == 200
